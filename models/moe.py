"""DeepSeekMoE: gate, routed experts as grouped products, shared experts.

arXiv 2412.19437, section 2.1.2 (and 2405.04434 for the group-limited softmax gate of V2).

Shapes: T tokens, D hidden size, E routed experts, k experts a token, N = T·k routed rows,
F expert width, G groups of experts. N rows are sorted by expert before the products, so that
expert e owns rows offs[e-1] .. offs[e]; all shapes are static, whatever the routing.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from . import fp8
from .config import Config
from .linear import Precision, projection


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x)). Dense layers and shared experts."""

    def __init__(self, dim: int, width: int, precision: Precision, device: torch.device | str):
        super().__init__()
        self.gate_proj = projection(dim, width, precision, device)
        self.up_proj = projection(dim, width, precision, device)
        self.down_proj = projection(width, dim, precision, device)

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        x = self.gate_proj.prepare(x_TD)
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Gate(nn.Module):
    """Chooses k experts per token and weighs them.

    The linear runs in the dtype of the model, the scores in FP32. `e_score_correction_bias`
    (FP32 [E], only with `noaux_tc`) shifts which experts are chosen, never what they weigh: it is
    how V3 balances load without an auxiliary loss, and the optimizer does not touch it.
    """

    def __init__(self, config: Config, *, dtype: torch.dtype, device: torch.device | str):
        super().__init__()
        self.config = config
        experts = config.n_routed_experts
        self.weight = nn.Parameter(
            torch.empty(experts, config.hidden_size, dtype=dtype, device=device)
        )
        self.e_score_correction_bias = None
        if config.topk_method == "noaux_tc":
            bias = torch.empty(experts, dtype=torch.float32, device=device)
            self.e_score_correction_bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights (FP32) and expert indices (INT64), each [T, k]."""
        config = self.config
        score_TE = self.scores(x_TD)
        choice_TE = score_TE.detach()
        if self.e_score_correction_bias is not None:
            choice_TE = choice_TE + self.e_score_correction_bias
        if config.topk_method != "greedy" and config.topk_group < config.n_group:
            choice_TE = self._drop_groups(choice_TE)
        expert_Tk = choice_TE.topk(config.num_experts_per_tok, dim=-1, sorted=False).indices

        weight_Tk = score_TE.gather(1, expert_Tk)
        if config.norm_topk_prob:
            weight_Tk = weight_Tk / weight_Tk.sum(dim=-1, keepdim=True)
        if config.routed_scaling_factor != 1.0:
            weight_Tk = weight_Tk * config.routed_scaling_factor
        return weight_Tk, expert_Tk

    def scores(self, x_TD: torch.Tensor) -> torch.Tensor:
        """What each expert would weigh, FP32 [T, E]: no bias in it, not normalised."""
        logits_TE = F.linear(x_TD, self.weight).float()
        softmax = self.config.scoring_func == "softmax"
        return logits_TE.softmax(dim=-1) if softmax else logits_TE.sigmoid()

    def _drop_groups(self, choice_TE: torch.Tensor) -> torch.Tensor:
        """-inf for all experts outside of the `topk_group` best groups.

        A group is one node of an expert-parallel deployment, so a token is sent to at most
        `topk_group` nodes. V3 ranks a group by its two best experts, V2 by its best one.
        """
        choice_TGe = choice_TE.unflatten(-1, (self.config.n_group, -1))
        if self.config.topk_method == "noaux_tc":
            group_TG = choice_TGe.topk(2, dim=-1).values.sum(dim=-1)
        else:
            group_TG = choice_TGe.amax(dim=-1)
        kept = group_TG.topk(self.config.topk_group, dim=-1, sorted=False).indices
        dropped_TG = torch.ones_like(group_TG, dtype=torch.bool).scatter_(1, kept, False)
        return choice_TGe.masked_fill(dropped_TG.unsqueeze(-1), float("-inf")).flatten(-2)

    @torch.no_grad()
    def init_weights(self, std: float, generator: torch.Generator | None) -> None:
        self.weight.normal_(0.0, std, generator=generator)
        if self.e_score_correction_bias is not None:
            self.e_score_correction_bias.zero_()


class Routing(NamedTuple):
    """Where each of the N = T·k routed rows goes.

    order: INT64 [N], the row (token·k + choice) that stands at each place after sorting.
    inverse: INT64 [N], the place at which each row stands.
    offs: INT32 [E], where the rows of each expert end.
    top_k: k.
    """

    order: torch.Tensor
    inverse: torch.Tensor
    offs: torch.Tensor
    top_k: int


def route(expert_Tk: torch.Tensor, experts: int) -> Routing:
    """Sort the (token, expert) pairs by expert; never more than O(N + E) elements."""
    by_expert_N, order_N = expert_Tk.flatten().sort(stable=True)
    place_N = torch.arange(order_N.shape[0], device=order_N.device)
    inverse_N = torch.empty_like(order_N).scatter_(0, order_N, place_N)
    expert_E = torch.arange(experts, device=order_N.device)
    offs_E = torch.searchsorted(by_expert_N, expert_E, right=True, out_int32=True)
    return Routing(order_N, inverse_N, offs_E, expert_Tk.shape[1])


class _Dispatch(torch.autograd.Function):
    """x_TD -> x_ND, one copy of a token for each of its experts, sorted by expert.

    The backward of a plain `index_select` adds rows with atomics. A permutation can be undone by
    reading instead, which is what this does.
    """

    @staticmethod
    def forward(ctx, x_TD, order, inverse, top_k):
        ctx.save_for_backward(inverse)
        ctx.top_k = top_k
        return x_TD.index_select(0, order // top_k)

    @staticmethod
    def backward(ctx, grad_ND):
        (inverse,) = ctx.saved_tensors
        grad_TkD = grad_ND.index_select(0, inverse).unflatten(0, (-1, ctx.top_k))
        return grad_TkD.sum(dim=1), None, None, None


class _Collect(torch.autograd.Function):
    """y_ND sorted by expert -> y_ND in the order of tokens."""

    @staticmethod
    def forward(ctx, y_ND, order, inverse):
        ctx.save_for_backward(order)
        return y_ND.index_select(0, inverse)

    @staticmethod
    def backward(ctx, grad_ND):
        (order,) = ctx.saved_tensors
        return grad_ND.index_select(0, order), None, None


def dispatch(x_TD: torch.Tensor, routing: Routing) -> torch.Tensor:
    """Rows [N, D] sorted by expert, a token repeated for each of its k experts."""
    return _Dispatch.apply(x_TD, routing.order, routing.inverse, routing.top_k)


def collect(y_ND: torch.Tensor, routing: Routing) -> torch.Tensor:
    """Rows sorted by expert back in the order in which they were before `dispatch`."""
    return _Collect.apply(y_ND, routing.order, routing.inverse)


def combine(y_ND: torch.Tensor, weight_Tk: torch.Tensor, routing: Routing) -> torch.Tensor:
    """The weighted sum [T, D] of the k results of each token, without atomics."""
    y_TkD = collect(y_ND, routing).unflatten(0, (-1, routing.top_k))
    return (y_TkD * weight_Tk.to(y_TkD.dtype).unsqueeze(-1)).sum(dim=1)


@torch.library.custom_op("deepseek::grouped_mm", mutates_args=())
def _grouped_mm(x: torch.Tensor, w: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
    """`torch._grouped_mm` for FP16 and FP32: its kernels take them, its meta kernel does not."""
    return torch._grouped_mm(x, w, offs=offs)


@_grouped_mm.register_fake
def _(x, w, offs):
    if w.dim() == 3:  # rows by expert: [M, K] · [E, K, N]
        return x.new_empty(x.shape[0], w.shape[2])
    return x.new_empty(offs.shape[0], x.shape[0], w.shape[1])  # [N, M] · [M, K], M by expert


def _grouped_mm_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _grouped_mm_backward(ctx, dy):
    x, w, offs = ctx.saved_tensors
    dx = _grouped_mm(dy, w.transpose(-2, -1), offs)
    dw = _grouped_mm(dy.t(), x, offs).transpose(-2, -1)
    return dx, dw, None


_grouped_mm.register_autograd(_grouped_mm_backward, setup_context=_grouped_mm_setup)


def grouped_mm(x_NK: torch.Tensor, w_EFK: torch.Tensor, offs_E: torch.Tensor) -> torch.Tensor:
    """Rows of x times the transposed weight of the expert that owns them: [N, F]."""
    w_EKF = w_EFK.transpose(-2, -1)
    if x_NK.dtype == torch.bfloat16:
        return torch._grouped_mm(x_NK, w_EKF, offs=offs_E)
    return _grouped_mm(x_NK, w_EKF, offs_E)


class Experts(nn.Module):
    """E SwiGLU experts, stacked: `gate_proj`, `up_proj` [E, F, D] and `down_proj` [E, D, F].

    A checkpoint holds them one by one (`experts.7.gate_proj.weight`); a loader stacks them.
    """

    def __init__(self, config: Config, precision: Precision, device: torch.device | str):
        super().__init__()
        experts, dim = config.n_routed_experts, config.hidden_size
        width = config.moe_intermediate_size
        self.experts = experts
        for name, shape in (
            ("gate_proj", (experts, width, dim)),
            ("up_proj", (experts, width, dim)),
            ("down_proj", (experts, dim, width)),
        ):
            self._add_weight(name, shape, precision.dtype, device)

    def _add_weight(self, name, shape, dtype, device) -> None:
        setattr(self, name, nn.Parameter(torch.empty(shape, dtype=dtype, device=device)))

    def forward(
        self, x_TD: torch.Tensor, weight_Tk: torch.Tensor, expert_Tk: torch.Tensor
    ) -> torch.Tensor:
        routing = route(expert_Tk, self.experts)
        x, offs_E = self._dispatch(x_TD, routing), routing.offs
        h_NF = F.silu(self._mm(x, "gate_proj", offs_E)) * self._mm(x, "up_proj", offs_E)
        y_ND = self._mm(self._prepare(h_NF), "down_proj", offs_E)
        return combine(y_ND, weight_Tk, routing)

    def _dispatch(self, x_TD, routing):
        return self._prepare(dispatch(x_TD, routing))

    def _prepare(self, x_NK):
        return x_NK

    def _mm(self, x, name, offs_E):
        return grouped_mm(x, getattr(self, name), offs_E)

    @torch.no_grad()
    def init_weights(self, std: float, generator: torch.Generator | None) -> None:
        for weight in (self.gate_proj, self.up_proj, self.down_proj):
            weight.normal_(0.0, std, generator=generator)


class Fp8TrainingExperts(Experts):
    """Weights in `dtype`, quantised on the fly; all three products of each matrix in FP8."""

    def _prepare(self, x_NK):
        with torch.no_grad():
            return fp8.Quantized(x_NK, *fp8.quantize_rows(x_NK))

    def _mm(self, x, name, offs_E):
        return fp8.GroupedLinearFn.apply(*x, getattr(self, name), offs_E)


class Fp8Experts(Experts):
    """Weights in E4M3; scales FP32 beside them, `gate_proj_scale_inv` [E, FB, DB] and so on."""

    def _add_weight(self, name, shape, dtype, device) -> None:
        weight = torch.empty(shape, dtype=fp8.E4M3, device=device)
        setattr(self, name, nn.Parameter(weight, requires_grad=False))
        scales = torch.empty(shape[0], fp8.tiles(shape[1]), fp8.tiles(shape[2]), device=device)
        self.register_buffer(f"{name}_scale_inv", scales)

    def _dispatch(self, x_TD, routing):
        # Quantised before it is copied: dispatch moves one byte an element (section 3.3.3).
        values_TD, scales_TB = fp8.quantize_rows(x_TD)
        token_N = routing.order // routing.top_k
        return fp8.Quantized(
            None, values_TD.index_select(0, token_N), scales_TB.index_select(0, token_N)
        )

    def _prepare(self, x_NK):
        return fp8.Quantized(None, *fp8.quantize_rows(x_NK))

    def _mm(self, x, name, offs_E):
        weight, scales = getattr(self, name), getattr(self, f"{name}_scale_inv")
        return fp8.grouped_mm(x.values, x.scales, weight, scales, offs_E)

    @torch.no_grad()
    def quantize_(self, name: str, weight: torch.Tensor) -> None:
        """Take the values of an unquantised stack [E, out, in] for `name`."""
        values, scales = fp8.quantize_blocks(weight)
        getattr(self, name).copy_(values)
        getattr(self, f"{name}_scale_inv").copy_(scales)

    @torch.no_grad()
    def init_weights(self, std: float, generator: torch.Generator | None) -> None:
        for name in ("gate_proj", "up_proj", "down_proj"):
            shape, device = getattr(self, name).shape, getattr(self, name).device
            weight = torch.empty(shape, device=device).normal_(0.0, std, generator=generator)
            self.quantize_(name, weight)


class MoE(nn.Module):
    """Routed experts plus shared experts, which see every token and act as one wider one."""

    def __init__(self, config: Config, precision: Precision, device: torch.device | str):
        super().__init__()
        self.gate = Gate(config, dtype=precision.dtype, device=device)
        kind = Experts
        if precision.fp8:
            kind = Fp8TrainingExperts if precision.training else Fp8Experts
        self.experts = kind(config, precision, device)
        self.shared_experts = None
        if config.n_shared_experts:
            width = config.n_shared_experts * config.moe_intermediate_size
            self.shared_experts = FeedForward(config.hidden_size, width, precision, device)

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        y_TD = self.experts(x_TD, *self.gate(x_TD))
        return y_TD if self.shared_experts is None else y_TD + self.shared_experts(x_TD)
