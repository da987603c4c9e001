"""Dispatch and combine of routed tokens: seconds in DeepEP's two kinds of kernels.

Normal kernels send a token once to each domain and on to each rank over links, with SMs that copy:

    t = launch + skew * max(forwarded / links, crossing / NIC, (forwarded + crossing) / SMs)

Low-latency kernels send one copy an expert straight to its rank and hold no SM while they wait:

    t = short + skew * max(copies in the domain / links, copies beyond it / NIC)

Combine sends the same copies back, summed a domain at a time in the normal kernels.
"""

from __future__ import annotations

import numpy as np

from ..errors import UserError
from ..machine.kernels import Num
from .expert_traffic import Routing, Spread, token_bytes
from .experts.copies import copies_of
from .groups import Group
from .network import FREE, NetTime, Network

NORMAL, LOW_LATENCY = "normal", "low_latency"


def dispatch(
    network: Network, tokens: Num, hidden: int, routing: Routing, group: Group, *,
    kernel: str = NORMAL, precision: str = "fp8", sms: float | None = None, skew: float = 1.0,
    copies: Spread | None = None,
) -> NetTime:  # fmt: skip
    """Seconds to send `tokens` of every rank to their experts' ranks.

    Args:
        network: of the cluster.
        tokens: tokens of one rank (may be an array).
        hidden: elements of a token.
        routing: the router, experts in order over the group's ranks.
        group: the expert-parallel group.
        kernel: "normal" (training, prefill) or "low_latency" (decode).
        precision: of the tokens on the wire.
        sms: SMs that a normal kernel gets; the cluster's `comm_sms` if left out.
        skew: the busiest rank's bytes over the mean.
        copies: of a token; those of even routing of the router's own gate if left out.

    Raises:
        UserError: a group that does not fit the cluster, an unknown kernel or precision.
    """
    network.check(group)
    if kernel not in (NORMAL, LOW_LATENCY):
        raise UserError(f"kernel {kernel!r}: choose {NORMAL!r} or {LOW_LATENCY!r}")
    held = network.cluster.comm_sms if sms is None else sms
    if held <= 0 or skew < 1:
        raise UserError(f"sms={sms}, skew={skew}: give SMs above 0, and a skew of at least 1")
    if group.ranks == 1:
        return FREE
    c, cluster = network.experts, network.cluster
    copies = copies or copies_of(routing, group)
    nbytes = np.asarray(tokens, dtype=np.float64) * token_bytes(hidden, precision)
    link = network.links(group.per_domain).link
    if kernel == LOW_LATENCY:
        near, far = nbytes * copies.pairs_forwarded, nbytes * copies.pairs_crossing
        nic = cluster.nic_bandwidth * c.short_nic
        busy = np.maximum(near / (link * c.short_link), far / nic)
        launch, held = c.short, 0.0
    else:
        near, far = nbytes * copies.forwarded, nbytes * copies.crossing
        busy = np.maximum(near / (link * c.long_link), far / network.nic)
        busy = np.maximum(busy, (near + far) / (held * c.sm))
        launch = c.launch
    wire = cluster.wire(group.span) if group.domains > 1 else cluster.link_latency
    latency = max(launch, wire)
    parts = [latency + skew * busy, latency + 0.0 * busy, near, far]
    seconds, least, intra, inter = [x.item() if np.ndim(x) == 0 else x for x in parts]
    return NetTime(seconds, least, intra, inter, kernel, float(held))


def combine(
    network: Network, tokens: Num, hidden: int, routing: Routing, group: Group, *,
    kernel: str = NORMAL, precision: str = "bf16", sms: float | None = None, skew: float = 1.0,
    copies: Spread | None = None,
) -> NetTime:  # fmt: skip
    """Seconds to bring the experts' results of `tokens` of every rank back; as `dispatch`."""
    return dispatch(
        network, tokens, hidden, routing, group, kernel=kernel, precision=precision, sms=sms,
        skew=skew, copies=copies,
    )  # fmt: skip


def ep_tpot_limit(
    bandwidth: float, *, tokens: float = 32, hidden: int = 7168, copies: float = 9,
    layers: int = 61, dispatch_bytes: float = 1.0, combine_bytes: float = 2.0,
) -> float:  # fmt: skip
    """Least seconds a token that expert parallelism allows in decode (arXiv 2505.09343, 2.3.2).

    One expert a device, all `copies` of a token (8 routed, 1 shared) cross the network, and
    compute takes no time. With 50 GB/s and the paper's hidden size of 7K = 7000:

        (1 B dispatch + 2 B combine) x 32 tokens x 9 copies x 7000 / 50 GB/s = 120.96 us,

    twice a layer, since two micro-batches take turns so that one computes while the other is on the
    wire: 241.92 us a layer, x 61 layers = 14.76 ms a token, 67 tokens/s. With 7168: 15.11 ms. At
    900 GB/s (NVL72) 6.72 us an exchange, 0.82 ms a token, about 1200 tokens/s.

    Args:
        bandwidth: B/s one way of one device.
        tokens: of a device in each micro-batch.
        hidden: elements of a token.
        copies: experts that a token goes to over that link.
        layers: of the model; the paper takes all 61 as MoE layers.
        dispatch_bytes: an element on the way there (FP8).
        combine_bytes: an element on the way back (BF16).
    """
    if bandwidth <= 0:
        raise UserError(f"bandwidth={bandwidth}: give B/s above 0 (50e9)")
    exchange = (dispatch_bytes + combine_bytes) * tokens * copies * hidden / bandwidth
    return 2 * exchange * layers
