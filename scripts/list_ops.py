"""Which ops are counted how: writes docs/ops.md from the formulas and from torch's own op list.

    python scripts/list_ops.py            # write docs/ops.md
    python scripts/list_ops.py --check    # fail if it would change
    python scripts/list_ops.py --counts   # only the coverage numbers

A formula's docstring is its row: FLOPs first, then `Bytes:` where they are not "every input read
once, every output written once", then `Estimated:` where data or kernels decide.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tracer.capture.compat import is_composite
from tracer.capture.records import Op
from tracer.cost import formulas, registry
from tracer.cost.formulas.moves import CREATES, MOVES, NOTHING
from tracer.cost.formulas.pointwise import COMPLEX_FLOPS, FLOPS_PER_ELEMENT, lookup
from tracer.cost.work import COPY, ESTIMATED, FREE

PAGE = Path(__file__).parent.parent / "docs" / "ops.md"

EXACT, PARTLY, ELEMENTWISE, MOVED, NO_WORK, COMPOSITE, UNMODELLED = (
    "formula, exact",
    "formula, estimated where data or kernels decide",
    "elementwise, by table",
    "moves or creates, bytes only",
    "view, query or allocation: free",
    "made of other ops, which are counted",
    "no formula: priced by bytes and named",
)
STATUSES = (EXACT, PARTLY, ELEMENTWISE, MOVED, NO_WORK, COMPOSITE, UNMODELLED)


def aten_overloads() -> Iterator[Any]:
    """Every overload of aten that the dispatcher knows."""
    for schema in torch._C._jit_get_all_schemas():
        if not schema.name.startswith("aten::"):
            continue
        packet = getattr(torch.ops.aten, schema.name.removeprefix("aten::"), None)
        overload = getattr(packet, schema.overload_name or "default", None)
        if overload is None:
            continue
        try:
            torch._C._dispatch_has_kernel_for_dispatch_key(overload.name(), "CPU")
        except RuntimeError:  # TorchScript's own, without a kernel anywhere
            continue
        yield overload


def status(overload: Any) -> str:
    """How an op of this kind is counted."""
    if is_composite(overload):
        return COMPOSITE
    op = Op(str(overload), (), {}, (), (), 0, "forward")
    formula = registry.find(op)
    if formula is not None:
        return PARTLY if "Estimated:" in (formula.function.__doc__ or "") else EXACT
    if overload.is_view:
        return NO_WORK
    work = lookup(op, torch.Tag.pointwise in overload.tags)
    if work is None:
        return UNMODELLED
    if work.kind == FREE:
        return NO_WORK
    if work.kind == COPY:
        return MOVED
    return PARTLY if work.confidence == ESTIMATED else ELEMENTWISE


def by_status() -> dict[str, list[str]]:
    """Overload names of every status."""
    names: dict[str, list[str]] = {s: [] for s in STATUSES}
    for overload in aten_overloads():
        names[status(overload)].append(str(overload))
    return names


def packets(names: list[str]) -> list[str]:
    """`aten.mm.out` and `aten.mm.default` are one op: `mm`."""
    return sorted({name.split(".")[1] for name in names})


def sections(doc: str) -> tuple[str, str, str]:
    """FLOPs, bytes and what is estimated, out of a formula's docstring."""
    text = inspect.cleandoc(doc)
    parts = re.split(r"\n\s*(Bytes|Estimated): ", text)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    flops, nbytes, estimated = (
        " ".join(part.split())
        for part in (parts[0], found.get("Bytes", ""), found.get("Estimated", ""))
    )
    return flops, nbytes, estimated


def families() -> Iterator[tuple[str, list[list[str]]]]:
    """A title and rows (ops, FLOPs, bytes, confidence) for every file of formulas."""
    rows: dict[str, dict[int, tuple[list[str], str]]] = {}
    for key, formula in registry.items():
        function = formula.function
        module = rows.setdefault(function.__module__, {})
        doc = function.__doc__ or ""
        # Formulas made in a loop differ in identity, not in what they say.
        names, _ = module.setdefault(hash(doc), ([], doc))
        names.append(key.removeprefix("aten."))
    for name in formulas.__all__:
        module = importlib.import_module(f"{formulas.__name__}.{name}")
        if module.__name__ not in rows:
            continue
        title = inspect.cleandoc(module.__doc__ or "")
        table = []
        for names, doc in rows[module.__name__].values():
            flops, nbytes, estimated = sections(doc)
            confidence = f"estimated: {estimated}" if estimated else "exact"
            table.append([code(names), flops, nbytes, confidence])
        yield title, table


def code(names: Any) -> str:
    """Names in a table cell."""
    return " ".join(f"`{name}`" for name in names)


def markdown(headers: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, unpadded: some cells are long."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in lines)


def page() -> str:
    """The whole of docs/ops.md."""
    names = by_status()
    lines = [
        "# Ops and how they are counted",
        "",
        "Written by `scripts/list_ops.py` from the formulas in `tracer/cost/formulas/`.",
        "",
        "Matrix FLOPs are those of matrix products and convolutions, 2 for a multiply-add (8 for a"
        " complex one). Everything else is vector FLOPs, one for each arithmetic step. Unless a row"
        " says otherwise, every input is read once and every output written once; a broadcast"
        " dimension counts once, a view costs nothing, an in-place op reads and writes.",
        "",
        f"## Coverage of aten (torch {torch.__version__.split('+')[0]})",
        "",
        counts(names),
        "",
        "Higher-order ops are recorded as `higher_order.*`. Flex attention has a formula; `scan`,"
        " `while_loop`, `cond` and Triton kernel wrappers run code that no dispatch mode sees, and"
        " are reported by name. So is any custom op until"
        ' `@tracer.cost("mylib::op")` gives it a formula.',
        "",
    ]
    for title, rows in families():
        first, _, rest = title.partition("\n\n")
        lines += [f"## {' '.join(first.split()).rstrip('.')}", ""]
        if rest:
            lines += [rest, ""]
        lines += [markdown(["ops", "FLOPs", "bytes", "confidence"], rows), ""]
    lines += [*elementwise(), *no_arithmetic()]
    lines += ["## No formula", "", "Sparse and nested layouts, whose sizes are data; test ops.", ""]
    lines += [code(packets(names[UNMODELLED])), ""]
    return "\n".join(lines)


def counts(names: dict[str, list[str]]) -> str:
    """Ops and overloads of every status. An op with overloads of two kinds counts in both."""
    rows = [[s, str(len(packets(names[s]))), str(len(names[s]))] for s in STATUSES]
    return markdown(["how", "ops", "overloads"], rows)


def elementwise() -> list[str]:
    """Vector FLOPs an output element, by table."""
    groups: dict[int, list[str]] = {}
    for name, steps in FLOPS_PER_ELEMENT.items():
        groups.setdefault(steps, []).append(name)
    groups.setdefault(2, []).append("clamp")
    rows = [[str(steps), code(sorted(ops))] for steps, ops in sorted(groups.items())]
    complex_groups: dict[int, list[str]] = {}
    for name, steps in COMPLEX_FLOPS.items():
        complex_groups.setdefault(steps, []).append(name)
    complex_rows = [[str(s), code(sorted(ops))] for s, ops in sorted(complex_groups.items())]
    return [
        "## Elementwise ops",
        "",
        "Also in place, with `out=`, and as `_foreach_*` over lists. An alpha that is not 1 adds"
        " one to `add`, `sub`, `rsub`; `clamp` counts its bounds.",
        "",
        markdown(["vector FLOPs an element", "ops"], rows),
        "",
        "Complex elements; others take six times their real count and are estimated. A complex"
        " number times a real one takes 2.",
        "",
        markdown(["vector FLOPs an element", "ops"], complex_rows),
        "",
    ]


def no_arithmetic() -> list[str]:
    """The tables of `moves`."""
    return [
        "## No arithmetic",
        "",
        f"Moved: {code(sorted(MOVES))}",
        "",
        f"Only written: {code(sorted(CREATES))}",
        "",
        f"Free: {code(sorted(NOTHING))}",
        "",
    ]


def main() -> int:
    """Write, compare or count."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--check", action="store_true", help="fail if docs/ops.md is out of date")
    options.add_argument("--counts", action="store_true", help="print the coverage numbers only")
    args = options.parse_args()
    if args.counts:
        print(counts(by_status()))
        return 0
    text = page()
    if args.check:
        current = PAGE.read_text() if PAGE.exists() else ""
        if current != text:
            print("docs/ops.md is out of date: run python scripts/list_ops.py", file=sys.stderr)
            return 1
        return 0
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
