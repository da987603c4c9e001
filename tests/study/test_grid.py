"""Axes as they are written, and blocks that hold every point once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.errors import UserError
from tracer.study import grid as grids
from tracer.study.grid import Axis, Grid, check_size, parse_axis


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("B=1:8:x2", (1, 2, 4, 8)),
        ("B=3:20:x2", (3, 6, 12)),
        ("B=8:32:8", (8, 16, 24, 32)),
        ("bandwidth=3.35e12,4.8e12", (3.35e12, 4.8e12)),
        ("L=4096", (4096,)),
        ("L=5:5:x3", (5,)),
    ],
)
def test_axes(text, values):
    assert parse_axis(text).values == values


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("B", "write NAME="), ("B=", "write NAME="), ("=3", "write NAME="), ("B=1:2", "write B="),
        ("B=8:4:x2", "empty, since 8 is above 4"), ("B=1:8:x1", "factor is above 1"),
        ("B=0:8:x2", "starts above 0"), ("B=1:8:0", "step is above 0"), ("B=a,2", "'a' is not a"),
        ("B=1,nan", "finite"), ("B=2,2", "twice"), ("B=1:1e9:1", "1,000,000,000 points"),
    ],
)  # fmt: skip
def test_strange_axes(text, says):
    with pytest.raises(UserError, match="--sweep") as caught:
        parse_axis(text)
    assert says in str(caught.value)


def test_an_endless_grid_names_its_cost():
    axes = [Axis(name, tuple(range(10**5))) for name in ("B", "L")]
    with pytest.raises(UserError) as caught:
        check_size(axes, cores=2)
    # 10^10 points at 2 million a second on each of 2 cores, and 150 bytes a row.
    assert "B x L: 10,000,000,000 points" in str(caught.value)
    assert "2,500 s on 2 cores" in str(caught.value)
    assert "1,500,000,000,000 bytes" in str(caught.value)


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 30))
def test_blocks_hold_every_point_once_in_order(lengths, size):
    grid = Grid(tuple(Axis(f"x{i}", tuple(float(v) for v in range(1, n + 1)))
                      for i, n in enumerate(lengths)))  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grids, "BLOCK", size)
        place = 0
        for block in grid:
            assert block.first == place
            shape = [len(next(iter(axis.values()))) for axis in block.axes]
            mesh = np.meshgrid(*(next(iter(axis.values())) for axis in block.axes), indexing="ij")
            count = int(np.prod(shape))
            expected = grid.points(np.arange(place, place + count))
            for axis, values in zip(block.axes, mesh, strict=True):
                assert (expected[next(iter(axis))] == values.ravel()).all()
            for name, value in block.fixed.items():
                assert (expected[name] == value).all()
            place += count
        assert place == grid.size
