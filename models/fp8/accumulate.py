"""The sum of FP8 products as the tensor cores of Hopper make it, and its repair.

Section 3.3.2 and 3.5.2 of arXiv 2412.19437: products are aligned to the largest exponent, only
their highest 14 bits are added, and what is shifted out is dropped; copying the partial sum to FP32
registers every 128 elements ("promotion") cures it. The accumulator keeps 13 fraction bits, which
others measured as well ("FP22", 1 + 8 + 13: SageAttention2, arXiv 2411.10958).

What is emulated, exactly. One instruction takes 32 elements of K and the accumulator. Of these 33
terms (the products, which are exact, and the accumulator) the one with the largest floor(log2 |t|)
sets the unit, 2^(that - 13). Every term is cut to a multiple of the unit, toward zero; the sum of
the multiples is exact; the result is cut to 13 fraction bits, toward zero, and is the new
accumulator. With promotion the accumulator is added to an FP32 sum, rounding to nearest, and starts
again from zero.

What is not known, and so not claimed: the order inside the instruction, whether the exponents that
are compared are those before or after normalising a product (a factor of two in the unit), and
whether negative terms are cut toward zero or down ("sign-fill right shifting" in the paper; down
would shift every sum one way, by far more than the paper's 2 % at K = 4096). Not bit for bit a
GPU's result, then, but its error.

Shapes: a [M, K], b [N, K], result [M, N]; memory is M·N·33 numbers a few times over.
"""

import torch

CHUNK = 32  # elements of K an instruction (wgmma m64nNk32)
FRACTION_BITS = 13  # 14 with the leading one
PROMOTE = 128  # elements of K between promotions: four instructions


def hopper_sum(a_MK: torch.Tensor, b_NK: torch.Tensor, promote: int | None) -> torch.Tensor:
    """FP32 [M, N], the product a·bᵀ of FP8 values (scales are left to the caller).

    Args:
        a_MK: FP8.
        b_NK: FP8.
        promote: elements of K after which the accumulator moves to FP32, a multiple of 32; None
            for never.
    """
    a_MK, b_NK = a_MK.float(), b_NK.float()
    total_MN = a_MK.new_zeros(a_MK.shape[0], b_NK.shape[0])
    accumulator_MN = total_MN.clone()
    for start in range(0, a_MK.shape[1], CHUNK):
        if promote and start % promote == 0:
            total_MN += accumulator_MN
            accumulator_MN = torch.zeros_like(accumulator_MN)
        chunk = slice(start, start + CHUNK)
        accumulator_MN = _instruction(accumulator_MN, a_MK[:, chunk], b_NK[:, chunk])
    return total_MN + accumulator_MN


def _instruction(c_MN: torch.Tensor, a_Mk: torch.Tensor, b_Nk: torch.Tensor) -> torch.Tensor:
    # A product has at most 8 significant bits, so FP32 holds it exactly.
    terms = torch.cat((c_MN.unsqueeze(-1), a_Mk.unsqueeze(1) * b_Nk.unsqueeze(0)), dim=-1)
    # frexp's mantissa is in [0.5, 1), so its exponent is one more than floor(log2).
    exponent = torch.frexp(terms.abs().amax(dim=-1, keepdim=True)).exponent - 1
    unit = torch.ldexp(torch.ones_like(terms[..., :1]), exponent - FRACTION_BITS)
    # At most 33 multiples below 2^14 each: their sum is below 2^24, exact in FP32.
    total_MN = ((terms / unit).trunc().sum(dim=-1, keepdim=True) * unit).squeeze(-1)
    return (total_MN.view(torch.int32) & ~((1 << (23 - FRACTION_BITS)) - 1)).view(torch.float32)
