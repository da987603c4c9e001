"""Where one side of a closed form overtakes another: solved with a proof, or proven not to exist.

Both sides are sums of products whose atoms grow with the unknown (`machine.bounds`), so that an
interval can be shown to hold no crossing. What is left is cut in halves until two neighbouring
whole numbers remain: the crossing is the first one, not just one. Beyond the last size the same
argument runs to infinity.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..algebra import Expr, Value
from ..algebra.expression import value_at
from ..errors import UserError
from ..machine.bounds import Box
from ..machine.knobs import EXCHANGE, INVERSE_MEMORY, INVERSE_NETWORK, inverse_matrix
from ..machine.symbolic import StepModel
from ..machine.tables import terms_of
from .closed import EP, Closed, bound
from .records import Crossover, Side

FAR = 2**24  # sizes up to here are searched one by one, beyond it an argument must do
_STEPS = 200_000  # intervals that a search may look at


def first_crossing(left: Value, right: Value, unknown: str, low: int, high: int) -> int | None:
    """The first whole number in [low, high] where `left` >= `right`; None if there is none.

    Raises:
        UserError: the two sides are so near each other that neither can be shown.
    """

    def reached(x: int) -> bool:
        point = {unknown: x}
        return bool(value_at(left, point) >= value_at(right, point))

    if reached(low):
        return low
    steps = 0
    todo = [(low, high)]  # leftmost on top; below its low end, and at it, there is no crossing
    while todo:
        steps += 1
        if steps > _STEPS:
            raise UserError(f"no crossing of {unknown} can be told: both sides all but coincide")
        a, b = todo.pop()
        if b == a or never(left, right, unknown, a, b):
            continue
        if b - a == 1:
            if reached(b):
                return b
            continue
        middle = (a + b) // 2
        if reached(middle):
            todo = [(a, middle)]  # the first one is not right of a place where it is reached
        else:
            todo += [(middle, b), (a, middle)]
    return None


def never(left: Value, right: Value, unknown: str, low: float, high: float) -> bool:
    """Whether `left` is proven to stay below `right` for all values in [low, high]."""
    box = Box({unknown: (float(low), float(high))}, {}, {})
    return box.never_above(terms_of(left), terms_of(right), strict=True)


def crossover(
    question: str, unknown: str, left: Value, right: Value, sides: tuple[str, str], low: int,
    high: int | None = None, notes: tuple[str, ...] = (),
) -> Crossover:  # fmt: skip
    """The first crossing in [low, high], or to infinity if `high` is None, with its proof."""
    end = FAR if high is None else high

    def at(x: int) -> Side:
        point = {unknown: x}
        return Side(x, float(value_at(left, point)), float(value_at(right, point)))

    value = first_crossing(left, right, unknown, low, end)
    limit = None
    if high is None:
        far, farther = at(2**60), at(2**61)
        limit = far.left / far.right if far.right else None
        if limit and not 0.9 < farther.left / farther.right / limit < 1.1:
            limit = None  # it grows for ever
    more = (low, high, "", limit, notes)
    if value is not None:
        where = max(value - 1, low)
        proof = (
            f"first reached at {unknown} = {value:,}: no interval below it holds one"
            if value > low
            else f"already at the smallest size, {unknown} = {low:,}"
        )
        return Crossover(question, unknown, value, at(where), at(value), sides, *more[:2], proof,
                         *more[3:])  # fmt: skip
    proof = f"none in {unknown} = {low:,} to {end:,}"
    if high is None and never(left, right, unknown, end, float("inf")):
        proof = f"none for any {unknown}: left/right tends to {limit:.4g} and stays below 1"
        end_text: int | None = None
    elif high is None:
        proof += "; beyond it nothing is proven"
        end_text = end
    else:
        end_text = high
    return Crossover(question, unknown, None, at(end), None, sides, low, end_text, proof,
                     *more[3:])  # fmt: skip


# -- both sides ------------------------------------------------------------------------------------


def sums(closed: Closed, model: StepModel, point: Mapping[str, Any]) -> dict[str, Value]:
    """Totals of a step with the symbols of `point` bound: FLOPs, bytes, and seconds of each.

    Keys: "flops", "bytes", "weights", "kv" (bytes by role), "compute" and "memory" (seconds at the
    full rates, matrix work only), "network" (seconds), "held" (bytes in memory), "tokens".
    """
    values = model.values({})
    memory = float(values.atom(INVERSE_MEMORY))
    found: dict[str, Any] = dict.fromkeys(
        ("flops", "bytes", "weights", "kv", "compute", "memory", "network"), 0
    )
    for row in closed.rows:
        for precision, flops in row.flops:
            found["compute"] += row.times * float(values.atom(inverse_matrix(precision))) * flops
        for _, flops in row.published:
            found["flops"] += row.times * flops
        for role, moved in row.moved:
            found["bytes"] += row.times * moved
            if role in found:
                found[role] += row.times * moved
    found["memory"] = found["bytes"] * memory
    found |= {"held": closed.memory.total, "tokens": closed.tokens}
    return {name: bound(value, point) for name, value in found.items()}


def network_seconds(closed: Closed, model: StepModel, point: Mapping[str, Any]) -> Value:
    """Seconds of all exchanges, with EP bound: the wires depend on it."""
    if closed.network is None:
        return 0
    values = model.values({EP: point[EP]})
    moved = bound(closed.network.moved, point)
    found: Value = moved * float(values.atom(INVERSE_NETWORK))
    return found + closed.network.exchanges * float(values.atom(EXCHANGE))


def _low(closed: Closed, name: str) -> int:
    if name not in closed.scope.symbols:
        raise UserError(f"{closed.name}: no size {name}; it has {', '.join(closed.symbols)}")
    return closed.scope.symbols[name].low


def _at(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value:,}" for name, value in point.items())


# -- the questions ---------------------------------------------------------------------------------


def compute_bound_batch(
    closed: Closed, model: StepModel, point: Mapping[str, int], share: float = 1.0
) -> Crossover:
    """The batch from which all FLOPs take longer than `share` of all bytes, at full rates."""
    total = sums(closed, model, point)
    capacity = model.defaults["capacity"]
    found = crossover(
        f"at {_at(point)}, from which B do the FLOPs take as long as the bytes?", "B",
        total["compute"], share * total["memory"], ("FLOPs at the peak, s", "bytes, s"),
        _low(closed, "B"),
    )  # fmt: skip
    if found.value is None:
        return found
    held = float(value_at(total["held"], {"B": found.value}))
    if held <= capacity:
        return found
    note = f"B = {found.value:,} holds {held / 1e9:,.0f} GB, {held / capacity:,.1f} chips' memory"
    return Crossover(**{**_fields(found), "notes": (note,)})


def kv_outweighs_weights(closed: Closed, model: StepModel, point: Mapping[str, int]) -> Crossover:
    """The context from which a step moves more bytes of KV cache than of weights."""
    total = sums(closed, model, point)
    return crossover(
        f"at {_at(point)}, from which L does a step move more KV than weights?", "L",
        total["kv"], total["weights"], ("KV bytes", "weight bytes"), _low(closed, "L"),
        None, _beyond(closed),
    )  # fmt: skip


def longest_context(closed: Closed, model: StepModel, point: Mapping[str, int]) -> Crossover:
    """The first context too long for one chip's memory; `below` is the longest that fits."""
    held = sums(closed, model, point)["held"]
    capacity = model.defaults["capacity"]
    unknown = "L" if "L" in closed.scope.symbols else "S"
    low = _low(closed, unknown)
    found = crossover(
        f"at {_at(point)}, which {unknown} no longer fits into {capacity / 1e9:,.0f} GB?", unknown,
        held, capacity + 1, ("bytes held", "first byte too many"), low, None, _beyond(closed),
    )  # fmt: skip
    if found.value != low:
        return found
    least = float(value_at(held, {unknown: low}))
    proof = f"none fits: {unknown} = {low:,} already holds {least / 1e9:,.0f} GB"
    return Crossover(**{**_fields(found), "proof": proof})


def network_overtakes_memory(
    closed: Closed, model: StepModel, point: Mapping[str, int]
) -> Crossover:
    """The number of GPUs over which the exchanges of experts' rows outlast the memory of each.

    Only divisors of the number of experts spread them evenly, so all of those are looked at.
    """
    if closed.experts is None or closed.network is None:
        raise UserError(f"{closed.name}: no experts are spread over {EP}")
    count = closed.experts.count
    sizes = [n for n in range(2, count + 1) if count % n == 0]
    found = []
    for size in sizes:
        at = {**point, EP: size}
        sent = network_seconds(closed, model, at)
        found.append(
            Side(size, float(_number(sent)), float(_number(sums(closed, model, at)["memory"])))
        )
    first = next((i for i, side in enumerate(found) if side.left >= side.right), None)
    question = f"at {_at(point)}, from which {EP} do exchanges take longer than the memory?"
    sides = ("exchanges, s", "bytes of one GPU, s")
    proof = f"all {len(sizes)} ways to spread {count} experts evenly were looked at"
    domain = model.chip.link_domain or 1
    notes = (f"up to {EP} = {domain} over the scale-up link, beyond it over the NIC",)
    if first is None:
        return Crossover(question, EP, None, found[-1], None, sides, 2, count, proof, None, notes)
    below = found[first - 1] if first else Side(1, 0.0, float("nan"))
    return Crossover(
        question, EP, int(found[first].at), below, found[first], sides, 2, count, proof, None, notes
    )  # fmt: skip


def _number(value: Value) -> Any:
    if isinstance(value, Expr):
        raise UserError(f"no value for {', '.join(value.symbols())}")
    return value


def _beyond(closed: Closed) -> tuple[str, ...]:
    if closed.longest is None:
        return ()
    return (f"the model has {closed.longest:,} positions",)


def _fields(found: Crossover) -> dict[str, Any]:
    return {name: getattr(found, name) for name in Crossover.__dataclass_fields__}
