"""The named constants of the kernel families: meaning and unit. Values live in `hardware/chips/`.

A share says how much of a datasheet figure real kernels reach: dimensionless, so that it carries
over to another chip together with that chip's datasheet. Latencies (seconds) do not stand on any
datasheet; one set serves a GPU generation.
"""

from __future__ import annotations

from typing import NamedTuple

from .rates import Num


class Power(NamedTuple):
    """How far matrix units get under the chip's power limit, for every family with matrix work."""

    sag: Num  # share by which a matrix kernel that runs for long is slower than a short one
    settle: Num  # s, run time at which half of the sag has set in
    reach: Num  # best share of the matrix peak that anyone measured in a large product


class Gemm(NamedTuple):
    """Dense products with operands that are ready in memory."""

    launch: Num  # s, a kernel that does nothing, as a node of a CUDA graph
    memory: Num  # share of the memory bandwidth that operand streams reach
    matrix: Num  # share of the matrix peak in the main loop
    prologue: Num  # elements of K that a tile's start and end cost
    serial: Num  # share of the shorter of compute and memory that one wave of tiles cannot hide


class GemmFp8(NamedTuple):
    """FP8 products; the activation is quantised first, in kernels of its own."""

    launch: Num  # s, quantisation and product together
    memory: Num  # share of the memory bandwidth
    matrix: Num  # share of the FP8 peak in the main loop
    prologue: Num  # elements of K that a tile's start and end cost
    split: Num  # s, what a split over K costs beyond its bytes
    quantise: Num  # elements a cycle and SM


class Prefill(NamedTuple):
    """Fused attention with many queries: blocks of 128 queries by 128 keys."""

    launch: Num  # s
    matrix: Num  # share of the matrix peak
    exposed: Num  # share of the exponentials that the matrix work does not hide
    rows: Num  # bytes of q, k, v and output a cycle and SM
    tail: Num  # blocks, as a share of the longest row, that the last wave waits
    portable: Num  # share of `matrix` that kernels of an older generation's instructions reach


class Decode(NamedTuple):
    """Fused attention with few queries a KV head: the cache is streamed once."""

    launch: Num  # s
    memory: Num  # share of the memory bandwidth that the cache streams at
    matrix: Num  # share of the matrix peak, over padded rows
    reduce: Num  # s a doubling of the cache's length: split over SMs and combined
    rows: Num  # bytes of queries and outputs a cycle and SM


class Grouped(NamedTuple):
    """One layer of routed experts: gate, up and down products, and the passes around them."""

    launch: Num  # s, all kernels of the layer: quantise, permute, products, activation, combine
    memory: Num  # share of the memory bandwidth that expert weights stream at
    matrix: Num  # share of the matrix peak, over padded rows
    rows: Num  # elements of (token, expert) rows a cycle and SM, all passes together


class Elementwise(NamedTuple):
    """Kernels without matrix work, by how they reach memory."""

    launch: Num  # s, the shortest kernel
    memory: Num  # share of the memory bandwidth of contiguous streams
    scalar: Num  # elements a cycle and SM where index arithmetic forbids vector loads
    gather: Num  # the same for rows found by index and for concatenation
    reduce: Num  # the same for reductions over rows


class Collective(NamedTuple):
    """All-reduce and all-gather over one scale-up domain."""

    launch: Num  # s
    hop: Num  # s a further rank and phase
    link: Num  # share of the one-way link bandwidth
    fill: Num  # s that chunks and protocols cost a long message
    reduce: Num  # volume of an all-reduce over its ideal: the additions
    copy: Num  # what copying a rank's own part costs, as a share of sending it


class ExpertExchange(NamedTuple):
    """Dispatch and combine of routed tokens, in DeepEP's two kinds of kernels."""

    short: Num  # s, a low-latency kernel that moves nothing
    short_link: Num  # share of the link bandwidth that low-latency copies reach
    short_nic: Num  # share of the NIC's line rate that low-latency messages reach
    launch: Num  # s, a normal (high-throughput) kernel that moves nothing
    long_link: Num  # share of the link bandwidth that normal kernels reach
    sm: Num  # B/s that one SM of a normal kernel moves, links and network together


FAMILIES: dict[str, type[tuple[Num, ...]]] = {
    "power": Power,
    "gemm": Gemm,
    "gemm_fp8": GemmFp8,
    "gemm_fp8_block": GemmFp8,
    "attention_prefill": Prefill,
    "mla_prefill": Prefill,
    "attention_decode": Decode,
    "mla_decode": Decode,
    "grouped": Grouped,
    "elementwise": Elementwise,
    "collective": Collective,
}

# Families that no single chip's trace has: what a plan over many chips adds.
NETWORK: dict[str, type[tuple[Num, ...]]] = {"expert_exchange": ExpertExchange}

# Shares of a datasheet figure: more than 1 would claim a kernel faster than the chip.
SHARES = {"memory", "matrix", "link", "short_link", "short_nic", "long_link"}
