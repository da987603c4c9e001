"""Experts spread over ranks: every token travels to its experts, and their results travel back.

arXiv 2412.19437, sections 3.2.2 and 3.3.3. The shapes are those of `moe`; P is the number of slots
over all ranks (E experts and the redundant copies), p = P / ranks those of one rank, M the rows
that a rank receives.

Out, a row is FP8 with a scale for every 128 elements where the experts are FP8, else BF16; back it
is BF16. Gradients do the same: those of results go out in FP8, those of inputs come back in BF16.

On meta tensors there is no routing to look at, and it is taken as balanced: every rank sends
N / ranks rows to every rank, so M = N. Real tensors go where the gate says.

A token is sent once for each of its experts. That the gate picks experts from at most `topk_group`
groups, so that a token may cross to each node once and be copied there, is for the network to make
use of: the rows are the same.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from . import fp8
from .collectives import Group, exchange, raw_exchange
from .config import Config
from .linear import Precision
from .moe import (
    Experts,
    Fp8Experts,
    Fp8TrainingExperts,
    Routing,
    collect,
    combine,
    dispatch,
    route,
)


class Ways(NamedTuple):
    """Where rows go: `send` and `receive` count rows by rank, `local` sorts what comes."""

    send: list[int]
    receive: list[int]
    local: Routing
    group: Group


def replicas(expert_Tk: torch.Tensor, experts: int, redundant: int) -> torch.Tensor:
    """Slots [T, k] of experts [T, k]. The first `redundant` experts have two: odd tokens use the
    copies, which stand behind all others.
    """
    if not redundant:
        return expert_Tk
    odd_T1 = (torch.arange(expert_Tk.shape[0], device=expert_Tk.device) % 2 == 1).unsqueeze(1)
    return torch.where(odd_T1 & (expert_Tk < redundant), expert_Tk + experts, expert_Tk)


def ways(routing: Routing, slots: int, group: Group) -> Ways:
    """Tell every rank how many rows its experts get from here, and count what comes."""
    each = slots // group.size
    start_P = torch.cat((routing.offs.new_zeros(1), routing.offs[:-1]))
    count_P = routing.offs - start_P
    even = [each] * group.size
    came_Rp = raw_exchange(count_P, even, even, group).unflatten(0, (group.size, each))
    rows = routing.order.shape[0]
    if count_P.is_meta:
        send = [rows // group.size + (rank < rows % group.size) for rank in range(group.size)]
        receive = send
    else:
        send = count_P.unflatten(0, (group.size, each)).sum(dim=1).tolist()
        receive = came_Rp.sum(dim=1).tolist()
    # Rows come by rank, and from a rank by expert.
    expert_Rp = torch.arange(each, device=count_P.device).expand(group.size, -1)
    expert_M = torch.repeat_interleave(
        expert_Rp.flatten(), came_Rp.flatten(), output_size=sum(receive)
    )
    return Ways(send, receive, route(expert_M.unsqueeze(1), each), group)


class _Travelling:
    """A kind of `Experts` that holds p slots of P; mixed in before it."""

    def __init__(
        self, config: Config, precision: Precision, device: torch.device | str, group: Group,
        redundant: int,
    ):  # fmt: skip
        super().__init__(config, precision, device)
        self.group = group
        self.logical, self.redundant = self.experts * group.size - redundant, redundant

    def forward(self, x_TD, weight_Tk, expert_Tk):
        slot_Tk = replicas(expert_Tk, self.logical, self.redundant)
        routing = route(slot_Tk, self.logical + self.redundant)
        way = ways(routing, self.logical + self.redundant, self.group)
        x, offs = self._travel(x_TD, routing, way), way.local.offs
        h_MF = F.silu(self._mm(x, "gate_proj", offs)) * self._mm(x, "up_proj", offs)
        return combine(self._finish(self._prepare(h_MF), way), weight_Tk, routing)

    def _travel(self, x_TD, routing, way):
        x_ND = dispatch(x_TD, routing)
        x_MD = exchange(x_ND, way.receive, way.send, way.group)
        return self._prepare(dispatch(x_MD, way.local))

    def _finish(self, h, way):
        y_MD = self._mm(h, "down_proj", way.local.offs)
        return exchange(collect(y_MD, way.local), way.send, way.receive, way.group)


class TravellingExperts(_Travelling, Experts):
    """BF16 (FP16, FP32) both ways."""


class TravellingFp8Experts(_Travelling, Fp8Experts):
    """FP8 weights, as served: FP8 out, BF16 back."""

    def _travel(self, x_TD, routing, way):
        return fp8.Quantized(None, *_send_fp8(x_TD, routing.order // routing.top_k, way))


class TravellingFp8TrainingExperts(_Travelling, Fp8TrainingExperts):
    """FP8 out and BF16 back, in the forward and in the backward."""

    def _travel(self, x_TD, routing, way):
        return fp8.Quantized(*_Dispatch.apply(x_TD, routing, way))

    def _finish(self, h, way):
        return _Finish.apply(*h, self.down_proj, way)


def travelling(precision: Precision) -> type[_Travelling]:
    """The kind of experts for a precision, as `MoE` chooses it."""
    if not precision.fp8:
        return TravellingExperts
    return TravellingFp8TrainingExperts if precision.training else TravellingFp8Experts


def _send_fp8(x_TD, row_N, way):
    """Quantise x once, and send its rows `row_N`; see `_exchange_fp8`."""
    values_TD, scales_TB = fp8.quantize_rows(x_TD)
    return _exchange_fp8(values_TD.index_select(0, row_N), scales_TB.index_select(0, row_N), way)


def _exchange_fp8(values_ND, scales_NB, way):
    """Rows of experts elsewhere with their scales for rows of the experts here, sorted by these."""
    splits = (way.receive, way.send, way.group)
    values_MD, scales_MB = raw_exchange(values_ND, *splits), raw_exchange(scales_NB, *splits)
    return values_MD.index_select(0, way.local.order), scales_MB.index_select(0, way.local.order)


class _Dispatch(torch.autograd.Function):
    """x_TD -> E4M3 rows of the local experts with their scales, and a handle for the gradient.

    The first result has the shape of the rows and no memory: the products read values and scales.
    """

    @staticmethod
    def forward(ctx, x_TD, routing, way):
        values_MD, scales_MB = _send_fp8(x_TD, routing.order // routing.top_k, way)
        ctx.save_for_backward(routing.inverse, way.local.inverse)
        ctx.top_k, ctx.back = routing.top_k, (way.send, way.receive, way.group)
        ctx.mark_non_differentiable(values_MD, scales_MB)
        ctx.set_materialize_grads(False)  # no zeros for the two
        handle_MD = x_TD.new_empty(1).expand(values_MD.shape)
        return handle_MD, values_MD, scales_MB

    @staticmethod
    def backward(ctx, grad_MD, *_):
        inverse, local_inverse = ctx.saved_tensors
        grad_ND = raw_exchange(grad_MD.index_select(0, local_inverse), *ctx.back)
        grad_TkD = grad_ND.index_select(0, inverse).unflatten(0, (-1, ctx.top_k))
        return grad_TkD.sum(dim=1), None, None


class _Finish(torch.autograd.Function):
    """h E4M3 [M, F] through the down-projection, results [N, D] back in BF16.

    Gradients of results go out in FP8 and are used as they come (section 3.3.3: "a similar
    strategy is applied to the activation gradient before MoE down-projections"): the input
    gradient's product reads them, and for the weight gradient they are rounded again by columns.
    """

    @staticmethod
    def forward(ctx, h_MF, h_fp8, h_scale, w_EDF, way):
        w_fp8, w_scale = fp8.quantize_blocks(w_EDF)
        ctx.save_for_backward(h_fp8, h_scale, w_fp8, w_scale)
        ctx.way = way
        y_MD = fp8.grouped_mm(h_fp8, h_scale, w_fp8, w_scale, way.local.offs)
        y_MD = y_MD.index_select(0, way.local.inverse)
        return raw_exchange(y_MD, way.send, way.receive, way.group)

    @staticmethod
    def backward(ctx, grad_ND):
        h_fp8, h_scale, w_fp8, w_scale = ctx.saved_tensors
        offs = ctx.way.local.offs
        rows = _exchange_fp8(*fp8.quantize_rows(grad_ND), ctx.way)
        dh_MF = fp8.grouped_input_gradient(*rows, w_fp8, w_scale, offs)
        dw_EDF = fp8.grouped_weight_gradient(fp8.dequantize(*rows), h_fp8, h_scale, offs)
        return dh_MF, None, None, dw_EDF, None
