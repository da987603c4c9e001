"""One symbolic trace as what studies need of it: counted rows, memory, routed experts, validity.

Small (a few dozen rows), plain, and written as JSON, so that a structure is traced once and every
later question about it needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..algebra import Call, Expr, Guard, Scope, Value
from ..algebra.expression import call as call_of
from ..algebra.expression import make
from ..algebra.functions import apply
from ..algebra.plain import from_plain, scope_from_plain, scope_to_plain, to_plain
from ..capture.records import Op, TensorRef
from ..cost import Ledger
from ..cost.roles import storage_roles
from ..errors import UserError
from ..machine.network import Network
from ..machine.rows import Row, rows_of
from ..predict.memory import Memory, memory

EP = "EP"  # GPUs that share the routed experts


@dataclass(frozen=True)
class Experts:
    """The routed experts of all layers.

    Attributes:
        count: experts a layer.
        weights: bytes of all their weights.
        exchanged: bytes of routed rows that one step sends to experts and gets back, all layers.
        exchanges: how many times it does: twice a layer.
    """

    count: int
    weights: int
    exchanged: Value
    exchanges: int


@dataclass(frozen=True)
class Closed:
    """A step in closed form.

    Attributes:
        name: model, dtype and phase, for headers.
        phase: the workload's.
        symbols: by name, what each stands for.
        rows: different kernels, counted.
        memory: bytes that one chip holds.
        tokens: that a step processes.
        scope: symbols with the traced sizes, and the guards under which all this holds.
        experts: of a model with routed ones.
        network: what is sent between chips, if the step is spread over several.
        longest: positions that the model has, if it says.
    """

    name: str
    phase: str
    symbols: Mapping[str, str]
    rows: tuple[Row, ...]
    memory: Memory
    tokens: Value
    scope: Scope
    experts: Experts | None = None
    network: Network | None = None
    longest: int | None = None

    def check(self, point: Mapping[str, float]) -> None:
        """Refuse a point where the formulas do not hold.

        Raises:
            UserError: names the point and the range.
        """
        whole: dict[str, Any] = {name: int(n) for name, n in self.scope.samples.items()}
        whole |= {k: int(v) if float(v).is_integer() else v for k, v in point.items() if k in whole}
        broken = self.scope.violated(whole)
        given = ", ".join(f"{k}={v:g}" for k, v in whole.items())
        if broken:
            raise UserError(f"{given}: outside of the formulas' range; they need {broken[0]}")
        reach = next((whole[name] for name in ("L", "S") if name in whole), 0)
        if self.longest is not None and reach > self.longest:
            raise UserError(f"{given}: the model has {self.longest:,} positions")

    def over_experts(self) -> Closed:
        """The step of one of EP GPUs that each run B sequences and share the routed experts.

        Routed rows a GPU stay B·k, whoever sends them; the experts read are those that B·EP tokens
        hit, over EP. Rows cross the network unless their expert is local: a share 1 - 1/EP.

        Raises:
            UserError: a model without routed experts, or counted so that all are read.
        """
        if self.experts is None:
            raise UserError(f"{self.name}: no routed experts to spread over EP")
        if EP in self.scope.symbols:
            return self
        scope = Scope()  # its own: the step as it was has no EP
        scope.symbols, scope.guards = dict(self.scope.symbols), dict(self.scope.guards)
        count = scope.symbol(EP, 1, low=1)
        scope.note(Guard(self.experts.count, "divides", count))
        rows = tuple(Row(*(_shared(x, count) for x in row)) for row in self.rows)
        if rows == self.rows:
            raise UserError(f"{self.name}: spreading experts over EP needs routing=uniform")
        held = [_shared(value, count) for value in asdict(self.memory).values()]
        held[0] = self.memory.weights - self.experts.weights + self.experts.weights / count
        sent = _shared(self.experts.exchanged, count) * (1 - 1 / count)
        return replace(
            self, rows=rows, memory=Memory(*held),
            network=Network(sent, self.experts.exchanges, count), scope=scope,
            symbols={**self.symbols, EP: "GPUs that share the routed experts, B sequences each"},
        )  # fmt: skip

    def to_plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "name": self.name,
            "phase": self.phase,
            "symbols": dict(self.symbols),
            "scope": scope_to_plain(self.scope),
            "rows": [_plain(row) for row in self.rows],
            "memory": _plain(tuple(asdict(self.memory).values())),
            "tokens": to_plain(self.tokens),
            "experts": None if self.experts is None else _plain(
                tuple(getattr(self.experts, n) for n in Experts.__dataclass_fields__)),
            "network": None if self.network is None else _plain(tuple(self.network)),
            "longest": self.longest,
        }  # fmt: skip

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Closed:
        """What `to_plain` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        scope = scope_from_plain(data["scope"])
        held = Memory(*_read(data["memory"], scope))
        experts, network = data["experts"], data["network"]
        return cls(
            data["name"], data["phase"], data["symbols"],
            tuple(Row(*_read(row, scope)) for row in data["rows"]), held,
            from_plain(data["tokens"], scope), scope,
            None if experts is None else Experts(*_read(experts, scope)),
            None if network is None else Network(*_read(network, scope)), data["longest"],
        )  # fmt: skip


def close(
    ledger: Ledger, name: str, phase: str, symbols: Mapping[str, str], longest: int | None = None
) -> Closed:
    """The closed form behind a ledger of a symbolic trace."""
    trace = ledger.trace
    if trace.scope is None:
        raise UserError(f"{name}: a sweep needs a trace with symbols")
    rows = rows_of(ledger)
    batch = trace.header["batch"]
    tokens = batch if phase == "decode" else batch * trace.header["seq"]
    found = {name: symbols[name] for name in trace.scope.symbols}
    held = memory(ledger)
    return Closed(
        name, phase, found, rows, held, tokens, trace.scope, _experts(ledger), longest=longest
    )  # fmt: skip


def _experts(ledger: Ledger) -> Experts | None:
    """Routed experts, from the grouped products of the forward: one call is one layer."""
    trace, roles = ledger.trace, storage_roles(ledger.trace)
    layers: dict[int, list[Op]] = {}
    for op in trace.ops:
        if "grouped" in op.name and op.phase == "forward":
            layers.setdefault(op.call, []).append(op)
    if not layers:
        return None
    weights, exchanges, exchanged = 0, 0, 0
    count = 0
    for ops in layers.values():
        for op in ops:
            for ref in op.inputs():
                if roles[ref.storage] == "weights" and len(ref.shape) == 3:
                    weights += ref.nbytes * op.times
                    count = ref.shape[0]
        sent = _rows_in(ops[0])
        exchanged = exchanged + (sent.nbytes + ops[-1].outputs[0].nbytes) * ops[0].times
        exchanges += 2 * ops[0].times
    return Experts(count, weights, exchanged, exchanges)


def _rows_in(op: Op) -> TensorRef:
    return next(op.inputs())


def _shared(value: Any, count: Expr) -> Any:
    """`value` with experts hit by B·EP tokens, over EP, in place of those hit by B."""
    if isinstance(value, tuple):
        return tuple(_shared(item, count) for item in value)

    def replaced(atom: Any) -> Any:
        if isinstance(atom, Call) and atom.name == "distinct":
            experts, top_k, tokens = atom.args
            everyone = mapped(tokens, replaced, count.scope) * count
            return call_of("distinct", experts, top_k, everyone) / count
        return None

    return mapped(value, replaced, count.scope)


def bound(value: Any, point: Mapping[str, Any]) -> Any:
    """`value` with numbers in place of the symbols of `point`."""
    return mapped(value, lambda atom: point.get(atom) if isinstance(atom, str) else None)


def mapped(value: Any, replaced: Callable[[Any], Any], scope: Scope | None = None) -> Any:
    """`value` with what `replaced` gives in place of each atom; None keeps it, arguments mapped.

    `scope`: where the result lives, if not with `value`.
    """
    if not isinstance(value, Expr):
        return value
    total: Any = 0
    for monomial, coefficient in value.terms.items():
        product: Any = coefficient
        for atom, power in monomial:
            factor = replaced(atom)
            if factor is None and isinstance(atom, Call):
                args = [mapped(arg, replaced, scope) for arg in atom.args]
                if any(isinstance(arg, Expr) for arg in args):
                    factor = call_of(atom.name, *args)
                else:
                    factor = apply(atom.name, args)
            elif factor is None:
                factor = make(scope or value.scope, {((atom, 1),): 1})
            for _ in range(abs(power)):
                product = product * factor if power > 0 else product / factor
        total = total + product
    return total


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str) else {"v": to_plain(value)}


def _read(value: Any, scope: Scope) -> Any:
    if isinstance(value, list):
        return tuple(_read(item, scope) for item in value)
    return value if isinstance(value, str) else from_plain(value["v"], scope)
