"""The time of a step as a function of points: sizes, a chip's figures, assumptions.

    model = StepModel(rows_of(price(trace)), chip, timing)
    model.seconds({"B": np.arange(2, 512), "L": 4096, "bandwidth": 8e12})

Both time models of `Timing`, kernel by kernel, equal to `predict()` of a concrete trace at every
point. A point that is not given takes the traced size, the datasheet's figure, the default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from tracer.hardware import Chip

from ..algebra import Expr, Scope
from .bounds import Box, Range
from .calibration import calibration_of
from .kernels import CLASSES, GATHER, REDUCE, SCALAR
from .kernels.gemm import TILE
from .knobs import (
    BYTES,
    EXCHANGE,
    INVERSE_MEMORY,
    INVERSE_NETWORK,
    INVERSE_VECTOR,
    ISSUE,
    defaults_of,
    derived_of,
)
from .knobs import inverse_matrix as inverse
from .network import Network
from .parts import Bound, Family, Maxima, Shaped
from .rows import Row
from .tables import Array, Table, Terms, Values, added, names_of, scaled, terms_of
from .timing import KERNELS, Timing

Axis: TypeAlias = Mapping[str, Array]  # names that vary together, arrays of one length


class Answer(NamedTuple):
    """What a step is at every point, arrays [points].

    `seconds` is the estimate; `compute`, `memory` and `latency` are the parts of it that wait for
    each on the chip, `network` what it sends and hides behind nothing. `ideal_compute` and
    `ideal_memory` are all FLOPs and all bytes at the full rates.
    """

    seconds: Array
    compute: Array
    memory: Array
    latency: Array
    ideal_compute: Array
    ideal_memory: Array
    flops: Array
    moved: Array
    network: Array

    @property
    def intensity(self) -> Array:
        """FLOPs a byte."""
        return self.flops / self.moved


class StepModel:
    """Rows of one trace on one chip.

    Raises:
        UserError: a product in a precision that the chip has no rate for.
    """

    def __init__(
        self, rows: Sequence[Row], chip: Chip, timing: Timing | None = None,
        scope: Scope | None = None, network: Network | None = None,
    ) -> None:  # fmt: skip
        self.rows, self.chip, self.timing = tuple(rows), chip, timing or Timing()
        self.defaults = defaults_of(chip, self.timing)
        self.defaults |= {name: float(n) for name, n in (scope.samples if scope else {}).items()}
        precisions = frozenset(p for row in self.rows for p, _ in row.flops)
        self._derived = derived_of(chip, self.timing, precisions)
        self.launches = sum(row.times for row in self.rows)
        kernels = self.timing.model == KERNELS
        self._calibration = calibration_of(chip) if kernels else None
        self._bounds = [self._roofline(row) for row in self.rows]
        self._kinds: list[Bound | Shaped] = list(self._bounds)
        if kernels:
            self._kinds = [
                self._kernel(*pair) for pair in zip(self.rows, self._bounds, strict=True)
            ]
        self._needs = [self._names(kind) for kind in self._kinds]
        self._sent = self._network(network)
        totals = [self._total(name) for name in ("matrix", "vector", "memory")]
        counted = [
            added(*(terms_of(x, row.times) for row in self.rows for _, x in getattr(row, name)))
            for name in ("published", "moved")
        ]
        self._totals = Table([*totals, *counted, self._sent], self._derived)
        self._everywhere: dict[float, list[tuple[Maxima | Family, frozenset[str]]]] = {}

    def fix(self, values: Mapping[str, float]) -> None:
        """Take other defaults; points that do not give these names are at them."""
        self.defaults |= values
        self._everywhere.clear()

    @property
    def networked(self) -> bool:
        """Whether the step sends anything between chips."""
        return bool(self._sent)

    @property
    def names(self) -> frozenset[str]:
        """Everything that the seconds depend on and a point may give."""
        return frozenset().union(*self._needs, names_of(self._sent, self._derived), ("host",))

    def seconds(self, points: Mapping[str, Any]) -> Array:
        """[points] seconds of the step; arrays of `points` have one length."""
        given, fixed = self._split(points)
        ranges = {k: (float(v.min()), float(v.max())) for k, v in given.items()}
        ranges |= {k: (v, v) for k, v in fixed.items()}
        found: Array = self.over(ranges).seconds([given] if given else [], fixed)
        return found.reshape(-1)

    def answer(self, points: Mapping[str, Any]) -> Answer:
        """Seconds, what they wait for, FLOPs and bytes; row by row."""
        axis, fixed = self._split(points)
        size = len(next(iter(axis.values()))) if axis else 1
        values = Values({**self.defaults, **fixed, **axis}, self._derived)
        varying = frozenset(axis)
        sums = np.zeros((4, size))
        for part, _ in self._parts_at(points):
            seconds, compute, memory, latency = part.waits(values, varying, size)
            works = compute >= memory
            busy = seconds - latency
            sums += [x.sum(axis=0) for x in (seconds, busy * works, busy * ~works, latency)]
        idle = np.maximum(values.given["host"] * self.launches - sums[0], 0.0)
        sums[0] += idle
        sums[3] += idle
        coefficients, groups = self._totals.at(values, varying, size)
        matrix, vector, traffic, flops, moved, network = coefficients @ groups
        sums[0] += network
        ideal = np.maximum(matrix, vector)
        return Answer(sums[0], sums[1], sums[2], sums[3], ideal, traffic, flops, moved, network)

    def sides(self, points: Mapping[str, Any]) -> tuple[Array, Array]:
        """[rows, points]: seconds of compute and of memory of every row, by the model in force."""
        axis, fixed = self._split(points)
        size = len(next(iter(axis.values()))) if axis else 1
        values = Values({**self.defaults, **fixed, **axis}, self._derived)
        found = [part.waits(values, frozenset(axis), size) for part, _ in self._parts_at(points)]
        return (
            np.concatenate([waits.compute for waits in found]),
            np.concatenate([waits.memory for waits in found]),
        )

    def over(self, ranges: Mapping[str, Range]) -> Blocks:
        """An evaluator for blocks of points in which names of `ranges` stay in theirs."""
        return Blocks(self, ranges)

    def parts(self, ranges: Mapping[str, Range]) -> list[tuple[Maxima | Family, frozenset[str]]]:
        """Rows by what of `ranges` they depend on: a part, and those names."""
        return self._grouped(ranges, ranges.get("sms", (0.0, self.defaults.get("sms", np.inf)))[1])

    def _grouped(
        self, ranges: Mapping[str, Range], sms: float
    ) -> list[tuple[Maxima | Family, frozenset[str]]]:
        box, swept = Box(ranges, self.defaults, self._derived), frozenset(ranges)
        groups: dict[Any, list[Any]] = {}
        for row, kind, needs in zip(self.rows, self._kinds, self._needs, strict=True):
            family = None
            if isinstance(kind, Shaped):  # products that fill the chip never split, and are faster
                family = (row.family, row.precision, _fills(row, sms))
            groups.setdefault((family, needs & swept), []).append(kind)
        found: list[tuple[Maxima | Family, frozenset[str]]] = []
        for (family, needs), kinds in groups.items():
            if family is None:
                found.append((Maxima(kinds, self._derived, box), needs))
            else:
                assert self._calibration is not None
                conditions = self.timing.conditions()
                more = (self._derived, self._calibration, conditions)
                found.append((Family(family[0], family[1], kinds, *more), needs))
        return found

    def _parts_at(self, points: Mapping[str, Any]) -> list[tuple[Maxima | Family, frozenset[str]]]:
        """Parts that hold for any points on a chip of as many SMs as these have at most."""
        sms = float(np.max(points.get("sms", self.defaults.get("sms", np.inf))))
        if sms not in self._everywhere:
            self._everywhere[sms] = self._grouped({}, sms)
        return self._everywhere[sms]

    def values(self, given: Mapping[str, Any]) -> Values:
        """Atoms at `given`, everything else at its default."""
        return Values({**self.defaults, **given}, self._derived)

    def _split(self, points: Mapping[str, Any]) -> tuple[dict[str, Array], dict[str, float]]:
        axis = {k: np.asarray(v, dtype=np.float64) for k, v in points.items() if np.ndim(v)}
        return axis, {k: float(v) for k, v in points.items() if not np.ndim(v)}

    def _roofline(self, row: Row) -> Bound:
        matrix = [terms_of(flops, 1.0, inverse(p)) for p, flops in row.flops]
        return Bound(
            row.times,
            {(("launch", 1),): 1.0},
            added(*matrix),
            terms_of(row.vector, 1.0, INVERSE_VECTOR),
            added(*(_moved(x, role, 1.0) for role, x in row.moved)),
        )

    def _kernel(self, row: Row, bound: Bound) -> Bound | Shaped:
        assert self._calibration is not None
        if row.family != "elementwise" or self._calibration["elementwise"].memory > 1:
            return Shaped(row.times, _retyped(row), bound._replace(launch={}))
        # launch + max(memory / share, issue, vector) is never below the roofline.
        c, shape = self._calibration["elementwise"], dict(row.shape)
        access = CLASSES[int(shape["access"])]  # a class, never an expression
        rate = {SCALAR: c.scalar, GATHER: c.gather, REDUCE: c.reduce}.get(access)
        issue = terms_of(shape["elements"], 1 / rate, ISSUE) if rate else {}
        memory = scaled(bound.memory, 1 / c.memory)
        return Bound(row.times, {(): c.launch}, issue, bound.vector, memory)

    def _names(self, kind: Bound | Shaped) -> frozenset[str]:
        if isinstance(kind, Bound):
            return names_of(added(*kind[1:]), self._derived)
        found = self._names(kind.floor)
        for _, value in kind.shape:
            found |= frozenset(value.symbols() if isinstance(value, Expr) else ())
        return found | {"sms", "frequency", "clock", "reserved_sms", "memory_efficiency",
                        "matmul_efficiency", "bandwidth"}  # fmt: skip

    def _network(self, network: Network | None) -> Terms:
        if network is None:
            return {}
        waits = scaled({((EXCHANGE, 1),): 1.0}, network.exchanges)
        return added(terms_of(network.moved, 1.0, INVERSE_NETWORK), waits)

    def sent(self, ranges: Mapping[str, Range]) -> tuple[Maxima, frozenset[str]]:
        """The network's seconds as a part, and what of `ranges` they depend on."""
        box = Box(ranges, self.defaults, self._derived)
        part = Maxima([Bound(1, self._sent, {}, {}, {})], self._derived, box)
        return part, names_of(self._sent, self._derived) & frozenset(ranges)

    def _total(self, side: str) -> dict[Any, float]:
        rows = self._bounds
        return added(*(scaled(getattr(row, side), row.times) for row in rows))


class Blocks:
    """Seconds on blocks of a grid: what does not depend on an axis is computed once along it."""

    def __init__(self, model: StepModel, ranges: Mapping[str, Range]) -> None:
        self._model = model
        self._parts = model.parts(ranges)
        self._sent = model.sent(ranges) if model.networked else None
        self._known: list[tuple[Any, Array] | None] = [None] * len(self._parts)
        self._host = "host" in ranges or model.defaults["host"] > 0

    def seconds(self, axes: Sequence[Axis], fixed: Mapping[str, float], key: Any = None) -> Array:
        """Seconds [len(axes[0]), len(axes[1]), ...]; names of `fixed` have one value in the block.

        `key`: equal where the arrays of `axes` are those of the call before.
        """
        shape = tuple(len(next(iter(axis.values()))) for axis in axes)
        total = np.zeros(shape)
        # Of one axis, all parts share what they know of its points.
        shared = self._model.values({**fixed, **axes[0]}) if len(axes) == 1 else None
        for number, (part, needs) in enumerate(self._parts):
            known = self._known[number]
            state = (key, tuple(fixed[name] for name in sorted(needs & fixed.keys())))
            if key is None or known is None or known[0] != state:
                known = (state, self._part(part, needs, axes, fixed, shared))
                self._known[number] = known
            total += known[1]
        if self._host:
            host = self._spread("host", axes, fixed) * self._model.launches
            np.maximum(total, host, out=total)
        if self._sent is not None:
            total += self._part(*self._sent, axes, fixed, shared)
        return total

    def _part(
        self, part: Maxima | Family, needs: frozenset[str], axes: Sequence[Axis],
        fixed: Mapping[str, float], shared: Values | None,
    ) -> Array:  # fmt: skip
        own = [frozenset(needs & axis.keys()) for axis in axes]
        sizes = [len(next(iter(a.values()))) if n else 1 for a, n in zip(axes, own, strict=True)]
        if shared is not None and sizes[0] > 1:
            return part.seconds(shared, own[0], sizes[0])
        given: dict[str, Any] = dict(fixed)
        for number, (axis, names) in enumerate(zip(axes, own, strict=True)):
            along = [1] * len(axes)
            along[number] = sizes[number]
            for name in names:
                given[name] = np.broadcast_to(axis[name].reshape(along), sizes).ravel()
        varying: frozenset[str] = frozenset().union(*own)
        found = part.seconds(self._model.values(given), varying, int(np.prod(sizes)))
        return found.reshape(sizes)

    def _spread(self, name: str, axes: Sequence[Axis], fixed: Mapping[str, float]) -> Any:
        for number, axis in enumerate(axes):
            if name in axis:
                return axis[name].reshape([-1 if i == number else 1 for i in range(len(axes))])
        return fixed.get(name, self._model.defaults[name])


def _fills(row: Row, sms: float) -> bool:
    """Whether even one row of tiles of a product occupies every SM."""
    shape = dict(row.shape)
    n, batch = shape.get("n"), shape.get("batch")
    return isinstance(n, float) and isinstance(batch, float) and batch * n / TILE >= sms


def _moved(value: Any, role: str, factor: float) -> Terms:
    return terms_of(value, factor, INVERSE_MEMORY) if role not in BYTES else {
        (*m, (BYTES[role], 1)): c for m, c in terms_of(value, factor, INVERSE_MEMORY).items()
    }  # fmt: skip


def _retyped(row: Row) -> tuple[tuple[str, Any], ...]:
    """The row's shape, its bytes under the factors of `BYTES`."""
    scope = Scope()
    more: Any = 0
    for role, moved in row.moved:
        if role in BYTES:
            more = more + (Expr(scope, {((BYTES[role], 1),): 1}) - 1) * moved
    # A cache's own stream has no queries and outputs in it.
    kept: dict[str, Any] = dict(row.shape)
    if "moved" in kept:
        kept["moved"] = kept["moved"] + more
    if "nbytes" in kept:
        cache = dict(row.moved).get("kv", 0)
        kept["nbytes"] = kept["nbytes"] + (Expr(scope, {((BYTES["kv"], 1),): 1}) - 1) * cache
    return tuple(kept.items())
