"""The import graph, read from the sources: stages import only from stages before them.

algebra < capture < cost < machine < profiles < parallel < predict < study < report < session, run.
`errors`, `collector` and `tracer.hardware` are leaves that everybody may use; `tracer.models` knows
nothing of the tracer. Only the capture may import torch when it is itself imported.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
STAGES = (
    "algebra",
    "capture",
    "cost",
    "machine",
    "profiles",
    "parallel",
    "predict",
    "study",
    "report",
    "top",
)
LEAVES = ("errors", "collector", "hardware")
# Torch and whatever pulls it in or costs as much.
HEAVY = ("torch", "transformers", "matplotlib", "sympy", "scipy", "pandas", "huggingface_hub")


class Arrow(NamedTuple):
    """`source` imports `target`, both dotted module names."""

    source: str
    target: str
    line: int
    eager: bool  # executed when `source` is imported: not in a function, not for type checkers

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target}"


def sources(root: Path) -> Iterator[tuple[str, bool, ast.Module]]:
    """(dotted module name, whether it is a package, syntax tree) as the package installs."""
    for folder, package in (("tracer", "tracer"), ("models", "tracer.models"),
                            ("hardware", "tracer.hardware")):  # fmt: skip
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            if parts[0] in ("models", "hardware"):
                continue  # links of an editable install
            is_package = parts[-1] == "__init__"
            name = ".".join((package, *(parts[:-1] if is_package else parts)))
            yield name, is_package, ast.parse(path.read_text(), str(path))


def is_type_checking(node: ast.AST) -> bool:
    test = getattr(node, "test", None)
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(test)


def imports(name: str, is_package: bool, tree: ast.Module) -> Iterator[Arrow]:
    known = name if is_package else name.rpartition(".")[0]

    def visit(node: ast.AST, eager: bool) -> Iterator[Arrow]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Arrow(name, alias.name, node.lineno, eager)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = known.split(".")[: len(known.split(".")) - node.level + 1]
                base = ".".join([*parts, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Arrow(name, f"{base}.{alias.name}", node.lineno, eager)
        elif is_type_checking(node):
            for child in node.body:
                yield from visit(child, False)
            for child in node.orelse:
                yield from visit(child, eager)
        else:
            inner = eager and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for child in ast.iter_child_nodes(node):
                yield from visit(child, inner)

    yield from visit(tree, True)


@functools.cache
def arrows(root: Path) -> tuple[Arrow, ...]:
    return tuple(arrow for source in sources(root) for arrow in imports(*source))


def stage(module: str) -> str:
    """The stage of a dotted name inside of the package: a folder, a leaf, or "top"."""
    parts = module.split(".")
    if len(parts) > 1 and parts[1] in (*STAGES, *LEAVES, "models"):
        return parts[1]
    return "top"


def inside(module: str) -> bool:
    return module == "tracer" or module.startswith("tracer.")


def backward(root: Path) -> list[str]:
    """Arrows that point to a later stage, out of a leaf, or from a model into the tracer."""
    found = []
    for arrow in arrows(root):
        if not inside(arrow.target):
            continue
        source, target = stage(arrow.source), stage(arrow.target)
        if source in ("errors", "collector", "models"):
            allowed = target == source
        elif source == "hardware":
            allowed = target in LEAVES
        elif target in LEAVES:
            allowed = True
        elif target == "models":
            allowed = source in ("capture", "top")
        else:
            allowed = STAGES.index(target) <= STAGES.index(source)
        if not allowed:
            found.append(str(arrow))
    return found


def heavy(root: Path) -> list[str]:
    """Eager imports of torch and the like outside of the stages that may have them."""
    found = []
    for arrow in arrows(root):
        package = arrow.target.split(".")[0]
        if not arrow.eager or package not in HEAVY:
            continue
        where = stage(arrow.source)
        if where in ("capture", "models") and package in ("torch", "transformers",
                                                          "huggingface_hub"):  # fmt: skip
            continue
        found.append(str(arrow))
    return found


@functools.cache
def eager_graph(root: Path) -> dict[str, set[str]]:
    """Module -> modules of the package that importing it imports, its parents included."""
    names = {name for name, _, _ in sources(root)}
    graph: dict[str, set[str]] = {name: set() for name in names}
    for arrow in arrows(root):
        if not arrow.eager or not inside(arrow.target):
            continue
        target = arrow.target if arrow.target in names else arrow.target.rpartition(".")[0]
        graph[arrow.source].add(target)
    for name in names:
        if "." in name:
            graph[name].add(name.rpartition(".")[0])
    return graph


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    seen, todo = set(), [start]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += graph.get(name, ())
    return seen


def test_no_arrow_points_back():
    assert backward(ROOT) == []


def test_only_the_capture_and_the_models_import_torch():
    assert heavy(ROOT) == []


def test_transformers_is_imported_in_one_place():
    """Its import costs as much as torch's: the reference models must not pay for it."""
    found = {
        arrow.source
        for arrow in arrows(ROOT)
        if arrow.eager and arrow.target.split(".")[0] in ("transformers", "huggingface_hub")
    }
    assert found
    assert all(name.startswith("tracer.capture.huggingface") for name in found)
    graph = eager_graph(ROOT)
    for start in ("tracer.run", "tracer.capture.program", "tracer.capture.reference"):
        assert not reachable(graph, start) & found, start


@pytest.mark.parametrize(
    "start",
    ["tracer", "tracer.run", "tracer.session", "tracer.cost", "tracer.machine", "tracer.predict",
     "tracer.capture.records", "tracer.capture.store", "tracer.hardware", "tracer.errors",
     "tracer.report.terminal", "tracer.report.markdown"],
)  # fmt: skip
def test_pricing_a_trace_never_reaches_torch(start):
    """Not itself, and not through anything that importing it imports."""
    with_torch = {
        arrow.source
        for arrow in arrows(ROOT)
        if arrow.eager and arrow.target.split(".")[0] in ("torch", "transformers")
    }
    graph = eager_graph(ROOT)
    assert start in graph
    assert not reachable(graph, start) & with_torch


def test_importing_goes_in_no_circle():
    """Packages may name their own modules; other than that eager imports form no cycle."""
    graph = eager_graph(ROOT)
    for name in graph:
        for target in graph[name]:
            parents = name.startswith(target + ".") or target.startswith(name + ".")
            if parents or target == name:
                continue
            assert name not in reachable_without_parents(graph, target), (name, target)


def reachable_without_parents(graph: dict[str, set[str]], start: str) -> set[str]:
    seen, todo = set(), [start]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += [t for t in graph.get(name, ()) if not name.startswith(t + ".")]
    return seen


def test_every_folder_of_the_tracer_has_its_place():
    folders = {p.name for p in (ROOT / "tracer").iterdir() if (p / "__init__.py").is_file()}
    folders -= {"models", "hardware"}  # links of an editable install
    assert folders <= set(STAGES)
    assert {"capture", "cost", "machine", "predict", "report"} <= folders


def test_private_names_of_torch_are_in_compat_alone():
    """A torch release may change them: one place to look at, with a contract test for each.

    The reference models cannot use it: they know nothing of the tracer.
    """
    found = []
    for arrow in arrows(ROOT):
        parts = arrow.target.split(".")
        if stage(arrow.source) == "models":
            continue
        private = any(part.startswith("_") and part != "__future__" for part in parts[1:])
        if parts[0] == "torch" and private and not arrow.source.startswith("tracer.capture.compat"):
            found.append(str(arrow))
    assert found == []


# -- the checks themselves -------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    """A small package that keeps the rules; tests break one each."""

    def write(**files: str) -> Path:
        for folder in ("tracer", "models", "hardware"):
            (tmp_path / folder).mkdir(exist_ok=True)
        content = {
            "tracer/__init__.py": "",
            "tracer/errors.py": "",
            "tracer/capture/__init__.py": "import torch\nfrom ..errors import UserError\n",
            "tracer/cost/__init__.py": "from ..capture import Trace\n",
            "tracer/report/__init__.py": "from ..cost import Ledger\n",
            "tracer/run.py": "def main():\n    from .report import render\n    import torch\n",
            "models/__init__.py": "import torch\nfrom .moe import MoE\n",
            "models/moe.py": "",
            "hardware/__init__.py": "from tracer.errors import UserError\n",
            **{name.replace("__", "/") + ".py": text for name, text in files.items()},
        }
        for name, text in content.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


def test_a_tree_that_keeps_the_rules_passes(tree):
    root = tree()
    assert backward(root) == []
    assert heavy(root) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("tracer__capture__hook", "from ..cost import price"),
        ("tracer__capture__hook", "from .. import cost"),
        ("tracer__capture__hook", "import tracer.cost.work"),
        ("tracer__capture__hook", "def f():\n    from tracer.report import text"),
        ("tracer__cost__deep__inner", "from ...machine import time"),
        ("tracer__cost__ops", "from ..run import main"),
        ("tracer__cost__ops", "from tracer.models import build"),
        ("tracer__errors", "from . import capture"),
        ("hardware__loader", "from tracer.cost import Work"),
        ("models__attention", "from tracer.errors import UserError"),
        ("models__attention", "from tracer import trace"),
    ],
)
def test_an_arrow_that_points_back_is_found(tree, file, line):
    (found,) = backward(tree(**{file: line + "\n"}))
    assert file.split("__")[-1] in found


@pytest.mark.parametrize(
    ("file", "text", "count"),
    [
        ("tracer__cost__ops", "import torch", 1),
        ("tracer__cost__ops", "from torch.nn import Module", 1),
        ("tracer__cost__ops", "class A:\n    import torch", 1),
        ("tracer__cost__ops", "try:\n    import torch\nexcept ImportError:\n    pass", 1),
        ("tracer__cost__ops", "def f():\n    import torch", 0),
        ("tracer__cost__ops", "if TYPE_CHECKING:\n    import torch", 0),
        ("tracer__cost__ops", "if typing.TYPE_CHECKING:\n    pass\nelse:\n    import torch", 1),
        ("tracer__capture__x", "import torch", 0),
        ("tracer__capture__x", "import matplotlib", 1),
        ("tracer__report__x", "from matplotlib import pyplot", 1),
    ],
)
def test_torch_in_the_wrong_place_is_found(tree, file, text, count):
    assert len(heavy(tree(**{file: text + "\n"}))) == count
