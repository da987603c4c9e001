"""Memory that an expert exchange's kernels hold for themselves, as DeepEP sizes it.

Formulas are those of deepseek-ai/DeepEP, csrc/config.hpp (`get_nvl_buffer_size_hint`,
`get_rdma_buffer_size_hint`, `LowLatencyLayout`), chunks those of deep_ep/buffer.py
(`get_dispatch_config`, `get_combine_config`). NCCL's buffers have no published formula: a
communicator takes 0.2 to 3 GB by its channels (NVIDIA/nccl issues 864 and 1685).
"""

from __future__ import annotations

from .groups import Group

_META = 8  # bytes that say where a row is from
_TOP_K, _SCALES = 128, 128  # the most that a row may have beside it
_CONTROL = 16
# By ranks, up to which: rows that a link's buffer takes, and the network's: 128, rounded up to
# whole sends of a dispatch (20, 32, 28, 32, 12 rows) or a combine (12, 8, 20, 12, 8), the larger.
_ROWS = {8: (256, 0), 16: (288, 140), 32: (288, 128), 64: (288, 140), 128: (560, 132)}
_MOST_ROWS = (720, 132)


def normal_buffers(hidden: int, group: Group, sms: float) -> float:
    """Bytes of a rank for normal kernels.

    Args:
        hidden: elements of a row, in BF16.
        group: expert-parallel ranks.
        sms: that the kernels run on, two a channel.
    """
    rows, received = next((r for most, r in _ROWS.items() if group.ranks <= most), _MOST_ROWS)
    channels = sms / 2
    row = 2 * hidden + _META + _TOP_K * (8 + 4) + _SCALES * 4
    links = channels * group.per_domain * rows * row
    if group.domains == 1:
        return links
    return links + 2 * channels * group.domains * received * (row + _CONTROL) + 2**20


def low_latency_buffers(hidden: int, tokens: int, experts: int) -> float:
    """Bytes of a rank for low-latency kernels: room for every token at every expert, for sends and
    for receives, each twice.

    Args:
        hidden: elements of a row, in BF16 on its way back.
        tokens: that a rank sends at once.
        experts: of all ranks, copies included.
    """
    scales = hidden // 128
    there = _CONTROL + max(2 * hidden, hidden + 4 * scales)
    back = 4 * scales + 2 * hidden
    sent = max(tokens * there, experts * tokens * back)
    received = experts * tokens * max(there, back)
    return 2.0 * (sent + received)
