"""Closed forms of a model and of its variants, traced once and kept on disk.

The cache holds one JSON file a structure, named by a digest of everything that the formulas depend
on: the config, the workload's kind, the counting conventions, the versions of torch and
transformers, and the sources of the stages behind them. A file that cannot be read is as good as
none.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..capture.configs import find_config, reference_sources
from ..cost.conventions import Conventions
from ..errors import UserError, did_you_mean
from .agreement import differences
from .closed import Closed, close

SYMBOLS = {"B": "sequences", "S": "tokens a sequence",
           "L": "keys that a decoded token attends, its own included"}  # fmt: skip

# Structural knobs: keys of a config.json that have the meaning, the first one that is there counts.
STRUCTURE: dict[str, tuple[str, ...]] = {
    "top_k": ("num_experts_per_tok", "moe_topk", "num_experts_per_token"),
    "hidden": ("hidden_size",),
    "rank": ("kv_lora_rank",),
    "layers": ("num_hidden_layers",),
    "experts": ("n_routed_experts", "num_local_experts", "num_experts"),
    "ffn": ("intermediate_size",),
    "expert_ffn": ("moe_intermediate_size",),
    "vocabulary": ("vocab_size",),
}


@dataclass(frozen=True)
class Structure:
    """What is traced: a model under changes, one phase of it, counted one way.

    `samples` are the sizes that branches are decided at; a size of 1 stays 1 and is no symbol.
    """

    model: str
    phase: str
    dtype: str = "bf16"
    execution: str = "efficient"
    batch: int = 8
    tokens: int = 4096
    layers: int | None = None
    conventions: Conventions = field(default_factory=Conventions)
    changes: tuple[tuple[str, int], ...] = ()  # key of the config, its value

    def alone(self) -> Structure:
        """The same for a batch of 1, which is no symbol: other branches and kernels run."""
        return replace(self, batch=1)

    def of(self, phase: str, batch: int | None) -> Structure:
        """The same in another phase, and with another batch if one is given."""
        return replace(self, phase=phase, batch=batch or self.batch)

    @property
    def name(self) -> str:
        """For headers."""
        changed = "".join(f", {key}={value}" for key, value in self.changes)
        return f"{self.model} in {self.dtype}, {self.phase}, {self.execution}{changed}"


class Cache:
    """JSON files under the user's cache folder; None for `folder` keeps nothing."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @classmethod
    def of_user(cls) -> Cache:
        """$XDG_CACHE_HOME/tracer, or ~/.cache/tracer."""
        base = os.environ.get("XDG_CACHE_HOME", "")
        root = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
        return cls(root / "tracer" / "closed")

    def get(self, key: str) -> Closed | None:
        """What `put` left under `key`, if it is whole."""
        if self.folder is None:
            return None
        try:
            document = json.loads((self.folder / f"{key}.json").read_text())
            return Closed.from_plain(document) if document["key"] == key else None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError):
            return None

    def put(self, key: str, closed: Closed) -> None:
        """Keep it, whole or not at all; a folder that cannot be written keeps nothing."""
        if self.folder is None:
            return
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(dir=self.folder, suffix=".part")
            try:
                with os.fdopen(handle, "w") as file:
                    json.dump({"key": key, **closed.to_plain()}, file)
                Path(part).replace(self.folder / f"{key}.json")
            finally:
                Path(part).unlink(missing_ok=True)


def closed_form(structure: Structure, cache: Cache) -> Closed:
    """The closed form of `structure`, from the cache or from a trace.

    Raises:
        UserError: the model is not known, has no such phase, or cannot be traced with symbols.
        NotSymbolic: its formulas are not what a trace of numbers counts at the same sizes.
    """
    config, _ = find_config(structure.model)
    key = _digest(structure, config)
    found = cache.get(key)
    if found is None:
        found = _trace(structure, config)
        cache.put(key, found)
    return found


def config_value(model: str, knob: str) -> tuple[str, int]:
    """The key of the config that a structural knob stands for, and its value.

    Raises:
        UserError: no such knob, or the model's config has none of its keys.
    """
    if knob not in STRUCTURE:
        raise UserError(f"{knob!r}: no part of a structure; {did_you_mean(knob, STRUCTURE)}")
    config, _ = find_config(model)
    if config is None:
        raise UserError(f"{knob}: {model} has no config.json at hand to change; give a folder")
    for key in STRUCTURE[knob]:
        if isinstance(config.get(key), int):
            return key, config[key]
    raise UserError(f"{knob}: the config of {model} has none of {', '.join(STRUCTURE[knob])}")


def _trace(structure: Structure, config: Mapping[str, Any] | None) -> Closed:
    from ..capture.program import load_program
    from ..capture.symbolic import NotSymbolic
    from ..capture.workload import Workload, record, record_symbolic
    from ..cost import price

    longest = config.get("max_position_embeddings") if config is not None else None
    with tempfile.TemporaryDirectory() as folder:
        model = structure.model
        if structure.changes:
            path = Path(folder) / "config.json"
            path.write_text(json.dumps({**(config or {}), **dict(structure.changes)}))
            model = str(path)
        program = load_program(model, dtype=structure.dtype, layers=structure.layers)
        longest = longest or program.longest
        tokens = min(structure.tokens, longest or structure.tokens)
        workload = Workload(structure.phase, structure.batch, tokens, tokens)
        attention = "naive" if structure.execution == "naive" else "fused"
        trace = record_symbolic(program, workload, attention=attention)
        numbers = record(program, workload, attention=attention)
    ledger, same = (
        price(each, structure.conventions, execution=structure.execution)
        for each in (trace, numbers)
    )
    assert trace.scope is not None
    found = differences(ledger, same, trace.scope.samples)
    if found:
        raise NotSymbolic(
            f"{structure.name}: {structure.phase} with symbols is not the program that runs with "
            f"numbers (it looks into its tensors): {found}"
        )
    return close(ledger, structure.name, structure.phase, SYMBOLS, longest)


def _digest(structure: Structure, config: Mapping[str, Any] | None) -> str:
    document = {"structure": asdict(structure), "config": config, "versions": _versions(),
                "sources": _sources()}  # fmt: skip
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:32]


def _versions() -> dict[str, str]:
    found = {}
    for name in ("torch", "transformers"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


_STAGES = ("algebra", "capture", "cost", "machine", "predict", "study")


@functools.cache
def _sources() -> str:
    """A digest of the code that makes formulas: they change with it."""
    digest = hashlib.sha256()
    own = Path(__file__).parents[1]
    for folder in (*(own / stage for stage in _STAGES), reference_sources()):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
