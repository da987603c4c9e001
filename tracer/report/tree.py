"""The module tree with what each module costs, itself and all below it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..capture.records import BACKWARD, FORWARD, Trace
from ..cost import Cost, Ledger
from .text import si


@dataclass
class Branch:
    """A module: its own and its children's costs by pass, and parameters."""

    name: str
    kind: str = ""
    calls: int = 0
    layers: int = 1
    parameters: int = 0
    passes: dict[str, Cost] = field(default_factory=dict)
    children: dict[str, Branch] = field(default_factory=dict)

    def total(self) -> Cost:
        """All passes."""
        return Cost.sum(self.passes.values())


def module_tree(ledger: Ledger) -> Branch:
    """Inclusive costs of every module that ran or holds parameters; the root is the model."""
    trace = ledger.trace
    root = Branch(trace.header.get("model", "") or "model")
    collected: dict[tuple[str, str], list[Cost]] = {}
    for kernel in ledger.kernels:
        for part in kernel.parts:
            collected.setdefault((part.module, kernel.phase), []).append(part.cost)
    for (path, phase), costs in collected.items():
        cost = Cost.sum(costs)
        for branch in _path(root, path):
            branch.passes[phase] = branch.passes.get(phase, Cost()) + cost
    for parameter in trace.parameters:
        if not parameter.buffer:
            owner = parameter.name.rpartition(".")[0]
            for branch in _path(root, folded_path(trace, owner)):
                branch.parameters += parameter.numel
    for call in trace.calls:
        branch = list(_path(root, call.module))[-1]
        branch.kind = call.kind
        branch.calls = max(branch.calls, call.nth + 1)
    for fold in trace.folds:
        list(_path(root, fold.module))[-1].layers = fold.layers
    return root


def _path(root: Branch, path: str) -> list[Branch]:
    branches = [root]
    for name in path.split(".") if path else []:
        branches.append(branches[-1].children.setdefault(name, Branch(name)))
    return branches


def folded_path(trace: Trace, path: str) -> str:
    """The traced layer that stands for the layer which `path` lies in."""
    for fold in trace.folds:
        for member in fold.members:
            if path == member or path.startswith(member + "."):
                return fold.module + path[len(member) :]
    return path


def render_tree(ledger: Ledger, depth: int | None = None) -> str:
    """One line a module: class, parameters, forward and backward FLOPs, bytes, share of bytes.

    Neighbours that read the same, such as layers that were not folded, are shown once.
    """
    root = module_tree(ledger)
    whole = root.total().total_bytes or 1

    def walk(branch: Branch, level: int) -> tuple[str, list[str]]:
        """What stands behind its name, and the lines below it."""
        total = branch.total()
        forward = branch.passes.get(FORWARD, Cost())
        facts = [branch.kind] if branch.kind else []
        if branch.layers > 1:
            facts.append(f"x{branch.layers} layers")
        if branch.calls > 1:
            facts.append(f"{branch.calls} calls")
        if branch.parameters:
            facts.append(f"{si(branch.parameters)}params")
        facts.append(f"{si(forward.total_flops)}FLOP forward")
        if BACKWARD in branch.passes:
            facts.append(f"{si(branch.passes[BACKWARD].total_flops)}FLOP backward")
        facts.append(f"{si(total.total_bytes)}B ({total.total_bytes / whole:.1%})")
        below: list[str] = []
        if depth is None or level < depth:
            alike: list[tuple[list[str], tuple[str, list[str]]]] = []
            for child in branch.children.values():
                shown = walk(child, level + 1)
                if alike and alike[-1][1] == shown and child.name.isdigit():
                    alike[-1][0].append(child.name)
                else:
                    alike.append(([child.name], shown))
            for names, (text, lines) in alike:
                name = names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]}"
                each = "" if len(names) == 1 else f"{len(names)} alike, each "
                below += [f"{'  ' * (level + 1)}({name}) {each}{text}", *lines]
        return ", ".join(facts), below

    head, lines = walk(root, 0)
    return "\n".join([f"({root.name}) {head}", *lines])
