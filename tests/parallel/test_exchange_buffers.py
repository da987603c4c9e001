"""Buffers of the expert exchange, against sums by hand."""

from __future__ import annotations

import pytest

from tracer.parallel.exchange_buffers import low_latency_buffers, normal_buffers
from tracer.parallel.groups import Group

HIDDEN = 7168
ROW = 14_336 + 8 + 128 * 12 + 128 * 4  # BF16, where it is from, top-k numbers and weights, scales


def test_normal_kernels_on_one_node():
    # 10 channels, 8 peers, 256 rows each.
    assert normal_buffers(HIDDEN, Group(8, 8), 20) == 10 * 8 * 256 * ROW == 335_708_160


def test_normal_kernels_over_eight_nodes():
    # 288 rows a link; 128 rows of the network's buffer are five sends of 28 or seven of 20.
    links, network = 10 * 8 * 288 * ROW, 2 * 10 * 8 * 140 * (ROW + 16)
    assert normal_buffers(HIDDEN, Group(64, 8), 20) == links + network + 2**20
    assert 0.74e9 < links + network < 0.75e9


@pytest.mark.parametrize(
    ("ranks", "rows", "received"), [(32, 288, 128), (128, 560, 132), (144, 720, 132)]
)
def test_chunks_of_large_groups(ranks, rows, received):
    links, network = 10 * 8 * rows * ROW, 2 * 10 * ranks // 8 * received * (ROW + 16)
    assert normal_buffers(HIDDEN, Group(ranks, 8), 20) == links + network + 2**20


def test_low_latency_kernels_have_room_for_every_token_at_every_expert():
    # 128 tokens, 288 experts: a row back has 56 pairs of BF16 beside it, 14,560 bytes in all.
    back = 7168 * 2 + 56 * 4
    assert low_latency_buffers(HIDDEN, 128, 288) == 4 * 288 * 128 * back == 2_146_959_360
    assert low_latency_buffers(HIDDEN, 64, 288) == low_latency_buffers(HIDDEN, 128, 288) / 2
