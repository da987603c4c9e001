"""Facts made by hand: one decode step on one chip, to be varied."""

from dataclasses import replace

from tracer.report.advice import next_steps
from tracer.report.facts import Facts, PhaseFacts
from tracer.report.findings import conclusions

DECODE = PhaseFacts(
    phase="decode", batch=8, length=4096, tokens=8, step=0.010, bound=0.008,
    spread=(0.009, 0.0115), shares={"compute": 0.1, "memory": 0.8, "network": 0.0, "latency": 0.1},
    flops=1e12, intensity=20.0, ridge=200.0, precision="bf16", mix="bf16",
    bytes={"weights": 4e10, "activations": 1e9, "kv": 8e9, "temporary": 1e9, "gradients": 0,
           "optimizer": 0},
    categories={"attention": 0.004, "feed-forward": 0.006},
    held={"weights": 4e10, "kv": 1e10, "gradients": 0, "optimizer": 0, "activations": 1e9},
    chips=1, launches=500, mfu=0.1, compute=0.001, products=0.001,
)  # fmt: skip
FACTS = Facts(
    model="m", chip="Chip", chip_memory=141e9, dtype="bf16", parameters=100, active=100,
    kv_bytes=10, phases=(DECODE,),
)  # fmt: skip


def with_phase(**changes):
    return replace(FACTS, phases=(replace(DECODE, **changes),))


def shares(**given):
    return {"compute": 0.0, "memory": 0.0, "network": 0.0, "latency": 0.0} | given


def rules(facts):
    return {f.rule: f for f in conclusions(facts)}


def advice(facts):
    return {f.rule: f for f in next_steps(facts, most=9)}
