"""Statistics of weights as plain rows: one a tensor, and sums of rows by layer group and pattern.

No torch in this file.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .shards import pattern

SIGMA = 6.0  # of the outlier share, unless asked otherwise


@dataclass(frozen=True)
class TensorStats:
    """One weight; FP8 ones are measured as what they mean, value times block scale.

    Attributes:
        name, shard, dtype, shape: of the stored tensor.
        count: finite elements, which all that follows is about.
        nonfinite: elements that are NaN or infinite.
        zeros: elements that are exactly zero.
        mean, std: std of the population (divided by `count`).
        abs_max: largest magnitude.
        sigma: the k of `outlier_share`.
        outlier_share: share of elements with a magnitude above k·std. None for vectors: norms
            lie around 1, and all of one would count.
        kurtosis: fourth central moment over the squared variance; 3 for a normal distribution.
        lost_per_tensor: share of elements that are not zero and that E4M3 with one scale for the
            tensor (abs_max to 448) rounds to zero. None for vectors, which no release quantises.
        lost_per_block: the same with a scale for every block of 128×128.

    Shares are 0 to 1. None where there is nothing to say: no finite element, no spread, and losses
    of a tensor with non-finite elements.
    """

    name: str
    shard: str
    dtype: str
    shape: tuple[int, ...]
    count: int
    nonfinite: int
    zeros: int
    mean: float | None
    std: float | None
    abs_max: float | None
    sigma: float
    outlier_share: float | None
    kurtosis: float | None
    lost_per_tensor: float | None
    lost_per_block: float | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `shape` as a list."""
        return {**dataclasses.asdict(self), "shape": list(self.shape)}


COLUMNS = tuple(field.name for field in dataclasses.fields(TensorStats))


@dataclass(frozen=True)
class GroupStats:
    """All tensors of one name pattern in one group of layers, as if they were one tensor.

    But for shares of outliers and losses: they are those of each tensor, weighted by elements.
    `worst` is the tensor with the largest `lost_per_tensor`, None for vectors.
    """

    layers: str
    pattern: str
    tensors: int
    count: int
    nonfinite: int
    mean: float | None
    std: float | None
    abs_max: float | None
    outlier_share: float | None
    lost_per_tensor: float | None
    lost_per_block: float | None
    worst: str | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


def grouped(rows: Sequence[TensorStats]) -> list[GroupStats]:
    """Rows summed by layer group (dense, MoE, MTP, outside) and name pattern, in their order."""
    where = layer_groups(row.name for row in rows)
    members: dict[tuple[str, str], list[TensorStats]] = {}
    for row in rows:
        members.setdefault((where[row.name], pattern(row.name)), []).append(row)
    order = list(dict.fromkeys(where.values()))
    keys = sorted(members, key=lambda key: order.index(key[0]))
    return [_group(*key, members[key]) for key in keys]


def _group(layers: str, name: str, rows: Sequence[TensorStats]) -> GroupStats:
    counted = [row for row in rows if row.count]
    mean, square = _weighted(counted, "mean"), None
    if mean is not None:
        square = sum(r.count * (r.std**2 + r.mean**2) for r in counted) / sum(
            r.count for r in counted
        )
    lossy = [row for row in rows if row.lost_per_tensor is not None]
    return GroupStats(
        layers, name, len(rows), sum(row.count for row in rows),
        sum(row.nonfinite for row in rows), mean,
        None if square is None else math.sqrt(max(square - mean**2, 0.0)),
        max((row.abs_max for row in counted), default=None),
        _weighted([row for row in counted if row.outlier_share is not None], "outlier_share"),
        _weighted(lossy, "lost_per_tensor"),
        _weighted(lossy, "lost_per_block"),
        max(lossy, key=lambda row: row.lost_per_tensor).name if lossy else None,
    )  # fmt: skip


def _weighted(rows: Sequence[TensorStats], field: str) -> float | None:
    total = sum(row.count for row in rows)
    return sum(row.count * getattr(row, field) for row in rows) / total if total else None


def worst_underflow(rows: Iterable[TensorStats], top: int = 10) -> list[TensorStats]:
    """The tensors that lose most to FP8 with one scale each, and lose anything at all."""
    lossy = [row for row in rows if row.lost_per_tensor]
    return sorted(lossy, key=lambda row: -row.lost_per_tensor)[:top]


def layer_groups(names: Iterable[str]) -> dict[str, str]:
    """Each name to its group: `dense layers 0-2`, `MoE layers 3-60`, `MTP layer 61`, `outside`."""
    names = list(names)
    layer_of = {
        name: int(m[1]) for name in names if (m := re.match(r"model\.layers\.(\d+)\.", name))
    }
    kinds: dict[int, str] = {}
    for name, layer in layer_of.items():
        kind = kinds.setdefault(layer, "dense")
        if ".mlp.experts." in name and kind == "dense":
            kinds[layer] = "MoE"
        if name.endswith(".eh_proj.weight"):
            kinds[layer] = "MTP"
    labels = {}
    for kind in set(kinds.values()):
        numbers = sorted(layer for layer, k in kinds.items() if k == kind)
        labels[kind] = f"{kind} layer{'s' if len(numbers) > 1 else ''} {_ranges(numbers)}"
    return {
        name: labels[kinds[layer_of[name]]] if name in layer_of else "outside" for name in names
    }


def _ranges(numbers: Sequence[int]) -> str:
    """[3, 4, 5, 9] as `3-5, 9`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{a}-{b}" if b > a else f"{a}" for a, b in runs)
