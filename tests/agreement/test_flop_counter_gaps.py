"""Where torch's counter reads zero and we do not, each with its arithmetic.

When one of these fails because `theirs` is no longer zero, torch has learned the op: move the case
to `test_flop_counter_modules.py`. Ours must be right either way.
"""

import pytest
import torch
import torch.nn.functional as F
from flop_counters import FULL, compare, count
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tracer.capture.program import load_program
from tracer.capture.workload import Workload, record
from tracer.cost import price

aten = torch.ops.aten
BF16, E4M3, INT8 = torch.bfloat16, torch.float8_e4m3fn, torch.int8


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def offsets(groups: int) -> Tensor:
    return torch.empty(groups, dtype=torch.int32, device="meta")


# Name: (op, what runs, FLOPs by hand).
ZERO = {
    "mv": ("aten.mv", lambda: meta(4, 5).mv(meta(5)), 2 * 4 * 5),
    "matmul with a vector": ("aten.mv", lambda: meta(3, 4, 5) @ meta(5), 2 * 3 * 4 * 5),
    "addmv": ("aten.addmv", lambda: torch.addmv(meta(4), meta(4, 5), meta(5)), 2 * 4 * 5),
    "dot": ("aten.dot", lambda: torch.dot(meta(7), meta(7)), 2 * 7),
    "vdot": ("aten.vdot", lambda: torch.vdot(meta(7), meta(7)), 2 * 7),
    "addbmm": (
        "aten.addbmm",
        lambda: torch.addbmm(meta(4, 6), meta(3, 4, 5), meta(3, 5, 6)),
        3 * 2 * 4 * 5 * 6,
    ),
    "_int_mm": (
        "aten._int_mm",
        lambda: torch._int_mm(meta(32, 16, dtype=INT8), meta(16, 24, dtype=INT8)),
        2 * 32 * 16 * 24,
    ),
    "_addmm_activation": (
        "aten._addmm_activation",
        lambda: aten._addmm_activation(meta(6), meta(4, 5), meta(5, 6)),
        2 * 4 * 5 * 6,
    ),
    # [7, 4] @ [4, 5] for the input and [4, 7] @ [7, 5] for the weight.
    "linear_backward": (
        "aten.linear_backward",
        lambda: aten.linear_backward(meta(7, 5), meta(7, 4), meta(4, 5), [True, True, True]),
        2 * (2 * 7 * 4 * 5),
    ),
    "linear_backward of the weight alone": (
        "aten.linear_backward",
        lambda: aten.linear_backward(meta(7, 5), meta(7, 4), meta(4, 5), [False, True, True]),
        2 * 7 * 4 * 5,
    ),
    # 32 rows, each through one of four experts of 16 x 24.
    "_grouped_mm, rows by expert": (
        "aten._grouped_mm",
        lambda: torch._grouped_mm(
            meta(32, 16, dtype=BF16), meta(4, 16, 24, dtype=BF16), offs=offsets(4)
        ),
        2 * 32 * 16 * 24,
    ),
    # Weight gradient: 32 rows make outer products of 16 x 24, each in one of four sums.
    "_grouped_mm, weight gradient": (
        "aten._grouped_mm",
        lambda: torch._grouped_mm(
            meta(16, 32, dtype=BF16), meta(32, 24, dtype=BF16), offs=offsets(4)
        ),
        2 * 32 * 16 * 24,
    ),
    # Four experts of 8 x 16, each over its own of 32 columns.
    "_grouped_mm, columns by expert": (
        "aten._grouped_mm",
        lambda: torch._grouped_mm(
            meta(4, 8, 16, dtype=BF16), meta(16, 32, dtype=BF16), offs=offsets(4)
        ),
        2 * 32 * 8 * 16,
    ),
    "_grouped_mm, a batch": (
        "aten._grouped_mm",
        lambda: torch._grouped_mm(meta(4, 8, 16, dtype=BF16), meta(4, 16, 24, dtype=BF16)),
        4 * 2 * 8 * 16 * 24,
    ),
    "_scaled_grouped_mm": (
        "aten._scaled_grouped_mm",
        lambda: torch._scaled_grouped_mm(
            meta(32, 16, dtype=E4M3),
            meta(4, 24, 16, dtype=E4M3).transpose(-2, -1),
            meta(32),
            meta(4, 24),
            offs=offsets(4),
            out_dtype=BF16,
        ),
        2 * 32 * 16 * 24,
    ),
    # x1 · W first, 4 · 3 vectors of 6 with 5 multiply-adds an element, then each of them · x2.
    "_trilinear (bilinear layers)": (
        "aten._trilinear",
        lambda: F.bilinear(meta(4, 5), meta(4, 6), meta(3, 5, 6)),
        2 * (4 * 3 * 5 * 6) + 2 * (4 * 3 * 6),
    ),
}
PRECISION = {"_int_mm": "int8", "_scaled_grouped_mm": "fp8"}


@pytest.mark.parametrize("name", ZERO)
def test_torch_reads_zero(name):
    op, run, by_hand = ZERO[name]
    counts = count(run)
    assert counts.theirs == 0
    assert counts.by_op() == {op: by_hand}
    default = "bf16" if name.startswith("_grouped_mm") else "fp32"
    assert set(counts.ledger.total().flops) == {PRECISION.get(name, default)}
    assert counts.ledger.unmodelled() == {}


def test_scaled_mm_v2():
    """The op behind `F.scaled_mm`, on real tensors: its meta kernel wants other scales."""
    a, b = torch.zeros(32, 16, dtype=E4M3), torch.zeros(24, 16, dtype=E4M3).t()
    one, whole = torch.ones(1), F.ScalingType.TensorWise
    counts = count(lambda: F.scaled_mm(a, b, one, whole, one, whole, output_dtype=BF16))
    assert counts.theirs == 0
    assert counts.by_op() == {"aten._scaled_mm_v2": 2 * 32 * 16 * 24}
    assert set(counts.ledger.total().flops) == {"fp8"}


def test_attention_on_a_cpu():
    """2 x 3 heads, 5 x 5 pairs, size 8: two products forward, four and one repeated backward."""
    q, k, v = (torch.zeros(2, 3, 5, 8, requires_grad=True) for _ in "qkv")
    pairs = 2 * 3 * 5 * 5

    def run():
        F.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()

    counts = count(run)
    assert counts.theirs == 0
    assert counts.by_op() == {
        "aten._scaled_dot_product_flash_attention_for_cpu": 2 * (2 * pairs * 8),
        "aten._scaled_dot_product_flash_attention_for_cpu_backward": 5 * (2 * pairs * 8),
    }
    # The fifth stands apart, and by default only S(S+1)/2 = 15 of 25 pairs are counted.
    total = price(counts.ledger.trace).total()
    assert total.total_flops == 3 * 2 * (2 * (2 * 3 * 15) * 8)
    assert sum(total.recompute_flops.values()) == 2 * (2 * 3 * 15) * 8


def test_rms_norm_is_vector_work():
    """Zero matrix FLOPs on either side. torch has no other kind; we count beside them.

    On a meta device the op runs as its steps: square, mean, scale and weight an element, and
    epsilon and root a row.
    """
    counts = count(lambda: F.rms_norm(meta(6, 8), (8,), meta(8), 1e-6))
    assert counts.theirs == counts.ours == 0
    assert counts.ledger.total().vector_flops == 4 * 6 * 8 + 2 * 6


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("groups", [2, 4])
def test_weight_gradient_of_grouped_convolutions(kind, groups):
    """Not zero but too much: torch forgets the groups there, and counts `groups` times the work."""
    with torch.device("meta"):
        model = kind(4, 8, 3, groups=groups)
        x = torch.empty(2, 4, 9, 8, requires_grad=True)
    # A channel meets 8 / groups others, through 3 x 3 taps, at every position.
    positions = 2 * (7 * 6 if kind is nn.Conv2d else 9 * 8)
    forward = 2 * positions * (4 * 8 // groups) * 3 * 3
    counts = count(lambda: model(x).sum().backward(), model)
    assert counts.ours == 3 * forward
    assert counts.theirs == (2 + groups) * forward


def test_routed_experts_of_deepseek_v3():
    """Five layers, 8 x 255 tokens: torch misses the routed experts, and nothing else.

    Two MoE layers, 8 of 256 experts a token, 3 x 7168 x 2048 multiply-adds each.
    """
    program = load_program("deepseek-ai/DeepSeek-V3", layers=5)
    with FlopCounterMode(display=False) as torch_counter:
        trace = record(program, Workload("prefill", batch=8, seq=255), fold=False)
    counts = compare(price(trace, FULL), torch_counter)
    routed = 2 * (8 * 255) * 8 * 2 * (3 * 7168 * 2048)
    assert counts.by_op()["aten._grouped_mm"] == routed
    assert counts.ours - counts.theirs == routed
    # The two totals that torch_notes states: 15.91 and 13.04 TFLOP.
    assert counts.ours == pytest.approx(15.91e12, rel=1e-3)
    assert counts.theirs == pytest.approx(13.04e12, rel=1e-3)


def test_block_scaled_experts_of_deepseek_v3():
    """In FP8 the experts are custom ops, which torch cannot know; dense `_scaled_mm` it does."""
    program = load_program("deepseek-ai/DeepSeek-V3", layers=4, dtype="fp8")
    work = Workload("training", batch=1, seq=128, optimizer="none")
    with FlopCounterMode(display=False) as torch_counter:
        trace = record(program, work, fold=False)
    counts = compare(price(trace, FULL), torch_counter)
    routed = 128 * 8 * 2 * (3 * 7168 * 2048)
    assert counts.ours - counts.theirs == 3 * routed
    assert counts.by_op()["deepseek.grouped_mm_fp8_block"] == 2 * routed  # forward, input gradient
    assert counts.by_op()["deepseek.grouped_wgrad_fp8_block"] == routed
