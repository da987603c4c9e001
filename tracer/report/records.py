"""What later stages may add to a `Study`: plain records, one a section that needs them.

A field that is None leaves its section out of the report. All values are raw: FLOPs, bytes,
seconds, shares; `chip` is a chip's id and `execution` is "naive" or "efficient".
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from ..predict.opcost import OpCost


class SweepPoint(NamedTuple):
    """One step of a sweep: `value` of the axis, and what the step costs there."""

    value: int
    execution: str
    flops: float
    bytes: float
    compute: float  # s, all work at its peak
    memory: float  # s, all bytes at full bandwidth
    step: float  # s, the estimate
    regime: str  # compute, memory, latency or network
    tokens: int  # that the step processes
    held: float  # bytes that it holds, all chips together
    fits: bool
    network: float = 0.0  # s of collectives that nothing hides


RIDGE = "FLOP/B reaches the ridge"  # the crossing that conclusions are drawn from


class Crossing(NamedTuple):
    """Where `what` happens on a sweep's axis; `value` is None if not up to `searched_to`.

    `searched_to` is None where the answer is proven for all sizes.
    """

    execution: str
    what: str  # such as RIDGE
    value: float | None
    searched_to: int | None
    note: str = ""  # such as "its cache alone needs 14 chips"


class Sweep(NamedTuple):
    """One knob varied with all else held: "batch" of decode, "seq" of prefill, "context", ..."""

    phase: str
    axis: str
    chip: str
    held: Mapping[str, int]  # what stayed as it was, such as {"context": 4096}
    points: tuple[SweepPoint, ...]
    crossings: tuple[Crossing, ...] = ()


class Elasticity(NamedTuple):
    """% that the step changes for 1 % more of `knob`, at the workload of the report.

    `halved` and `doubled` are the step's time over what it is now, None where a knob cannot go;
    `changes` says at which values the step as a whole waits for something else.
    """

    phase: str
    execution: str
    chip: str
    knob: str
    kind: str  # "workload", "chip", "precision", "assumption", ...
    value: float
    halved: float | None = None
    doubled: float | None = None
    changes: str = ""


class GridPoint(NamedTuple):
    """One combination of a grid: the knobs' values and the step."""

    knobs: Mapping[str, float | str]
    step: float
    regime: str
    fits: bool


class Grid(NamedTuple):
    """Every combination of a few knobs; the report ranks knobs by the spread of their medians."""

    phase: str
    execution: str
    chip: str
    points: tuple[GridPoint, ...]


class Sensitivity(NamedTuple):
    """What moves a step: local elasticities, and a grid for what is not local."""

    elasticities: tuple[Elasticity, ...] = ()
    grids: tuple[Grid, ...] = ()


class DecodeLimit(NamedTuple):
    """Whether decode can wait for compute at all under DP = EP = `ep`, and from which batch on."""

    chip: str
    ep: int
    context: int
    intensity: float  # FLOP/B of memory as the batch grows without end
    network_intensity: float | None  # FLOP/B sent between chips, None where nothing is sent
    batch: int | None  # sequences a chip from which it waits for compute; None: never in reach
    limiter: str  # what it waits for there, or what keeps it from compute
    held: float | None  # bytes a chip at that batch
    fits: bool | None


class ContextLimit(NamedTuple):
    """Where decode's FLOP/B goes as the context grows without end, at the batch of the report."""

    chip: str
    intensity: float  # FLOP/B of memory, all kernels
    ridge: float  # FLOP/B at which the FLOPs that grow take as long as the bytes


class Message(NamedTuple):
    """Collectives of one kind in one phase of one plan, a step, seen from one chip."""

    phase: str
    plan: str
    collective: str  # all_reduce, all_to_all, ...
    group: str  # such as "tp 8 in a node", "ep 64 across nodes"
    calls: int
    bytes: float  # that a chip sends
    seconds: float
    hidden: float  # seconds of them behind compute


class PlanRow(NamedTuple):
    """A step under one plan over many chips."""

    phase: str
    plan: str  # such as "tp 8, ep 64, dp 8"
    chip: str
    chips: int
    step: float
    compute: float
    memory: float
    network: float  # s that nothing hides
    tokens: int  # a step, all chips together
    held: float  # bytes a chip
    fits: bool
    regime: str


class WeightRow(NamedTuple):
    """Statistics of all tensors of one name pattern in one group of layers (docs/checkpoints.md).

    Shares are of elements; None where there is nothing to say, as of losses of a vector.
    """

    layers: str
    pattern: str
    tensors: int
    elements: int
    nonfinite: int
    mean: float | None
    std: float | None
    abs_max: float | None
    outlier_share: float | None
    lost_per_tensor: float | None
    lost_per_block: float | None
    worst: str | None  # the tensor that loses most with one scale


class Sublayer(NamedTuple):
    """One line of the formulas by module: `times` runs of `op`, each in the trace's symbols."""

    phase: str
    module: str  # pattern, layer numbers as *
    op: str
    times: int
    flops: str  # such as "2·B·S·7168·1536"
    bytes: str


class ClosedForm(NamedTuple):
    """One op of one module as arithmetic over B, S and L that a page can evaluate.

    Expressions use + - * / ** ( ) min max ceil floor round sqrt log2, numbers, and B, S, L; `bytes`
    has one a role. `precision` is that of the FLOPs; `times` how many such ops there are. `again`
    is what a kernel computes twice, which takes time and is in no published figure; `vector` is
    vector work.
    """

    phase: str
    execution: str
    module: str
    op: str
    times: int
    precision: str
    flops: str
    bytes: Mapping[str, str]
    again: str = "0"
    vector: str = "0"


class ClosedRange(NamedTuple):
    """Where the closed forms of one step hold: (in words, arithmetic that is above 0 there).

    `held` is the memory that the step takes, arithmetic by what it is for.
    """

    phase: str
    execution: str
    conditions: tuple[tuple[str, str], ...]
    held: Mapping[str, str] = MappingProxyType({})


class AccuracyRow(NamedTuple):
    """Errors of the kernel model on measured kernels of one family, in %."""

    family: str
    chip: str
    constants: str
    rows: int
    mape: float
    bias: float
    plain: float  # MAPE of the roofline at datasheet peaks on the same rows
    single: float  # MAPE of the roofline at the one efficiency that fits them best


class SideStep(NamedTuple):
    """One step of one side of a comparison; `ops` by (pass, module pattern, op)."""

    flops: float
    bytes: float
    compute: float
    memory: float
    step: float
    ops: Mapping[tuple[str, str, str], OpCost]
    sizes: str = ""  # such as "B = 8, S = 4,096"


class Side(NamedTuple):
    """A run to compare with: its steps by (phase, execution), on one chip."""

    name: str
    chip: str
    command: str
    steps: Mapping[tuple[str, str], SideStep]
