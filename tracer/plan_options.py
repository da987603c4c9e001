"""The command line of plans: its options, and which of them go together."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import NoReturn

from .errors import UserError

PHASES = ("training", "prefill", "decode")
AXES = ("cluster", "gpus", "tp", "ep", "pp", "dp", "cp", "zero", "schedule", "microbatches")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists the options)")


def add_axes(p: argparse.ArgumentParser) -> None:
    """The options that say how a model is cut; the main command has them too."""
    add = p.add_argument
    add("--cluster", metavar="ID", help="h800_ib, h100_ib, ... or a .toml (--list-clusters)")
    add("--gpus", type=int, metavar="N", help="all GPUs; by default tp * cp * pp * dp")
    for axis, what in (("tp", "tensor"), ("ep", "expert"), ("pp", "pipeline"), ("dp", "data"),
                       ("cp", "context")):  # fmt: skip
        add(f"--{axis}", type=int, metavar="N", help=f"{what} parallel ranks")
    add("--zero", type=int, metavar="N", help="0, 1, 2 or 3 (FSDP); default 1")
    add("--schedule", metavar="S", help="1f1b, dualpipe, zb1p, ...; default 1f1b")
    add("--microbatches", type=int, metavar="N", help="of a pipeline in a step")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = _Parser(prog="tracer.plan", description="Price a plan over many GPUs, or search for one.")
    add = p.add_argument
    add("--hf-config", metavar="MODEL", help="Hugging Face id, folder or config.json")
    add("--dtype", default="bf16", metavar="T", help="bf16 (default) or fp8")
    add("--layers", type=int, metavar="N", help="keep only N layers")
    add("--trust-remote-code", action="store_true", help="let transformers run the model's code")
    add_axes(p)
    add("--phase", default="training", metavar="P", help="training (default), prefill or decode")
    add("--seq", type=int, default=4096, metavar="S", help="tokens a sequence (default 4096)")
    add("--context", type=int, metavar="L", help="keys that a decoded token sees (as --seq)")
    add(
        "--global-batch",
        type=int,
        metavar="B",
        help="sequences of a training step; of a server's --search, in flight on all GPUs",
    )
    add("--batch", type=int, default=8, metavar="B", help="serving: sequences of a data rank (8)")
    add("--micro-batch", type=int, default=1, metavar="B", help="sequences at once (default 1)")
    add("--chunks", type=int, default=1, metavar="N", help="stages a rank when interleaved")
    add("--recompute", default="none", metavar="R", help="none, latent, selective or full")
    add("--mtp", action="store_true", help="train the module of multi-token prediction too")
    add("--moments", default="fp32", metavar="T", help="of AdamW: fp32 (default) or bf16")
    add("--gradients", default="parameter", metavar="T", help="kept as parameter (default) or fp32")
    add("--kept", default="trace", metavar="K", help="activations: trace (default) or fp8")
    add("--redundant", type=int, default=0, metavar="N", help="copies of experts, serving")
    add("--attention-dp", action="store_true", help="TP ranks have sequences of their own")
    add("--weights", metavar="fp8", help="serve a transformers model with FP8 linears")
    add("--overlap", action="store_true", help="serving: two micro-batches that hide messages")
    add("--engine", default="fused", metavar="E", help="an engine's kernels (default), or traced")
    add(
        "--routing",
        default="uniform",
        metavar="LAW",
        help="how tokens choose experts: uniform (default), zipf:S, or a file of tokens by expert",
    )
    add(
        "--placement",
        metavar="P",
        help="of experts: contiguous, round_robin, balanced or hierarchical",
    )
    add("--imbalance", type=float, metavar="X", help="busiest expert rank over the mean")
    add("--reserve", type=float, default=0.1, metavar="X", help="share of memory kept free (0.1)")
    add("--capacity", type=float, metavar="BYTES", help="of a GPU; default what the chip file says")
    add("--tokens-budget", type=float, metavar="N", help="tokens of a whole run (14.8e12)")
    add("--price", type=float, metavar="USD", help="of a GPU hour; default the cluster file's")
    add("--assume", action="append", default=[], metavar="NAME=VALUE",
        help="as in the main command: host, clock, model, rows, causal, ...")  # fmt: skip
    add("--strict", action="store_true", help="an op without a formula is an error")
    add("--search", action="store_true", help="every legal plan of --gpus, ranked; --tp, --cp, "
        "--pp, --ep are the most of each: 8, 1, 64, all")  # fmt: skip
    add("--top", type=int, default=10, metavar="N", help="rows of a search (default 10)")
    add("--verbose", action="store_true", help="notes; of a search also every dropped plan")
    add("--csv", metavar="FILE", help="of a search: all plans with their reasons")
    add("--json", action="store_true", help="one JSON document on standard output")
    add("--out", metavar="DIR", help="write the report there: report.html, .md, .json, tables, "
        "figures; of a pipeline also its timeline for Perfetto")  # fmt: skip
    add("--list-clusters", action="store_true", help="the bundled clusters")
    add("--compare", metavar="OTHER", help="a plan as it is printed ('pp=8 dp=32 zero=1'), a "
        "cluster, a model, or report.json or plan.json of a run: both side by side")  # fmt: skip
    return p


def given_in(p: argparse.ArgumentParser, argv: Sequence[str]) -> set[str]:
    """Names of the options that `argv` gives, whatever their values are."""
    names = vars(p.parse_args([]))
    # argparse gives no default to what a namespace has already.
    found = p.parse_args(argv, argparse.Namespace(**dict.fromkeys(names)))
    return {name for name, value in vars(found).items() if value is not None}


def flag(name: str) -> str:
    """`global_batch` as --global-batch."""
    return f"--{name.replace('_', '-')}"


_TRAINING = (
    "zero", "schedule", "microbatches", "global_batch", "micro_batch", "chunks", "recompute",
    "moments", "gradients", "kept", "capacity", "mtp",
)  # fmt: skip
_SERVING = ("batch", "weights", "overlap")
_SEARCH = ("csv", "top")
_NO_SEARCH = ("dp", "microbatches", "chunks", "redundant", "attention_dp", "compare", "strict")
_NO_SERVING_SEARCH = ("dp", "cp", "batch", "compare", "strict", "price", "tokens_budget")


def check_options(options: argparse.Namespace, given: set[str]) -> None:
    """Refuse options that would be ignored.

    Raises:
        UserError: the first of them, and where it belongs.
    """
    for name in given:
        if isinstance(getattr(options, name), list) and name != "assume":
            raise UserError(f"{flag(name)} has no value")  # argparse makes this of a lone '--'
    if options.hf_config is None:
        raise UserError("name a model: --hf-config deepseek-ai/DeepSeek-V3")
    if options.cluster is None:
        raise UserError("name a cluster: --cluster h800_ib (--list-clusters has them all)")
    if options.phase not in PHASES:
        raise UserError(f"--phase {options.phase!r}: choose one of {', '.join(PHASES)}")
    training, phase = options.phase == "training", options.phase
    own = tuple(n for n in _TRAINING if n != "global_batch" or not options.search)
    for names, holds, where in (
        (own, training, f"training, this is {phase}"),
        (_SERVING, not training, "prefill and decode, this is training"),
        (("context",), phase == "decode", f"decode, this is {phase}"),
        (_SEARCH, options.search, "--search"),
    ):
        for name in names:
            if name in given and not holds:
                raise UserError(f"{flag(name)} goes with {where}")
    if options.search:
        for name in _NO_SEARCH if training else _NO_SERVING_SEARCH:
            if name in given:
                raise UserError(f"{flag(name)} does not go with --search, which tries all plans")
        if options.out is not None and not training:
            raise UserError("--out: a search for servers has no report; give --csv, or --json")


_FROM_MAIN = (*AXES, "hf_config", "context", "assume", "out", "json", "compare", "layers",
              "trust_remote_code", "strict", "mtp")  # fmt: skip
_NOT_FROM_MAIN: Mapping[str, str] = {
    "module": "plans cut models of --hf-config",
    "exported": "plans cut models of --hf-config",
    "input": "plans cut models of --hf-config, which have their own inputs",
    "chip": "--cluster names the chip",
    "full": "a plan's layers are traced one of each kind",
    "checkpoint": "no weights are read",
}


def options_from_main(given: argparse.Namespace, names: set[str]) -> argparse.Namespace:
    """The options of the main command, of which `names` were given, as those of a plan.

    Raises:
        UserError: options that a plan does not take.
    """
    for name, why in _NOT_FROM_MAIN.items():
        if name in names:
            raise UserError(f"{flag(name)} does not go with a plan: {why}")
    if len(given.phase or ()) > 1:
        raise UserError("a plan is priced for one --phase: training, prefill or decode")
    if set(given.exec or ()) - {"efficient"}:
        raise UserError("--exec naive does not go with a plan: kernels of plans are fused ones")
    if given.optimizer != "adamw":
        raise UserError(f"--optimizer {given.optimizer} does not go with a plan: it has adamw")
    if "batch" in names and (given.phase or ["training"]) == ["training"]:
        raise UserError(
            "--batch does not go with a training plan: give --microbatches, or --global-batch of "
            "python -m tracer.plan"
        )
    options = parser().parse_args([])
    for name in _FROM_MAIN:
        setattr(options, name, getattr(given, name))
    for name in ("dtype", "seq", "batch"):
        if name in names:
            setattr(options, name, getattr(given, name))
    options.phase = given.phase[0] if given.phase else "training"
    check_options(options, names & {*_FROM_MAIN, "phase", "dtype", "seq", "batch"})
    return options
