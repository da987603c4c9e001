"""Colours, the same in figures and in the page, on light and on dark ground.

White text on any of them has a contrast of at least 4.5 (WCAG AA).
"""

from __future__ import annotations

PHASES = {
    "training": "#b9502a", "prefill": "#2b76ac", "decode": "#37804d", "forward": "#7a5fb0",
}  # fmt: skip
MARKERS = {"naive": "o", "efficient": "s"}
CATEGORIES = {
    "attention": "#2b76ac", "experts": "#b9502a", "feed-forward": "#37804d",
    "products": "#37804d", "convolutions": "#936828", "embedding": "#7a5fb0", "head": "#ad5788",
    "rest": "#6e7480", "optimizer": "#55637d",
}  # fmt: skip
ROLES = {
    "weights": "#b9502a", "activations": "#2b76ac", "kv": "#37804d", "temporary": "#6e7480",
    "gradients": "#936828", "optimizer": "#55637d",
}  # fmt: skip
WAITS = {
    "compute": "#b9502a", "memory": "#2b76ac", "network": "#37804d", "latency": "#6e7480",
}  # fmt: skip
OTHER = "#6e7480"
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
