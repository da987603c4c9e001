"""Colours, the same in figures and in the page; they stay apart in grey and on dark ground."""

from __future__ import annotations

PHASES = {
    "training": "#c2562f", "prefill": "#2f7fb8", "decode": "#3f8f57", "forward": "#7a5fb0",
}  # fmt: skip
MARKERS = {"naive": "o", "efficient": "s"}
CATEGORIES = {
    "attention": "#2f7fb8", "experts": "#c2562f", "feed-forward": "#3f8f57",
    "products": "#3f8f57", "convolutions": "#b0813a", "embedding": "#7a5fb0", "head": "#c06a9c",
    "rest": "#8a8f98", "optimizer": "#6b7890",
}  # fmt: skip
ROLES = {
    "weights": "#c2562f", "activations": "#2f7fb8", "kv": "#3f8f57", "temporary": "#8a8f98",
    "gradients": "#b0813a", "optimizer": "#6b7890",
}  # fmt: skip
WAITS = {
    "compute": "#c2562f", "memory": "#2f7fb8", "network": "#3f8f57", "latency": "#8a8f98",
}  # fmt: skip
OTHER = "#8a8f98"
INK = "#222222"  # text and axes: becomes the page's own colour there
GRID = "#dddddd"
ON_COLOUR = "#fefefe"  # text on a bar, on either ground
EMPTY = "#f2f2f2"  # where nothing is drawn: becomes the page's panel there
# Of a plan: parts of a step, what its compute waits for, its messages.
STEP = {
    "compute": WAITS["compute"], "exposed communication": WAITS["network"],
    "pipeline bubble": OTHER, "optimizer": ROLES["optimizer"],
    "between stages": ROLES["gradients"], "waiting for the host": CATEGORIES["head"],
}  # fmt: skip
COMPUTE = {
    "compute units": "#d9825f", "memory": WAITS["memory"], "kernels to start": PHASES["forward"],
    "gradients to be added up": "#9cc2de", "SMs that messages hold": "#e8bfae",
}  # fmt: skip
MESSAGES = {"exposed": WAITS["network"], "behind compute": "#9ccbab"}
