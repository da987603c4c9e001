"""What a review said against the seed report, each number once more in plain figures.

`seed_report_claims.py` works them out from the report's rules; here nothing of those is used. A
number that neither gives is not confirmed, and the list of those is short and named.
"""

import csv
import statistics
from collections import Counter
from math import exp
from pathlib import Path

import pytest
from seed_report_claims import Claim, claims

# Elements of one layer, and of the table (arXiv 2412.19437, section 4.2, and the release's shapes).
MATRICES = 7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 * 128 * 256 + 128 * 128 * 7168
MLA = MATRICES + 1536 + 512  # with the two inner norms
DENSE, EXPERT, ROUTER, TABLE = 396_361_728, 44_040_192, 1_835_008, 926_679_040
ACTIVE = 61 * MATRICES + 3 * DENSE + 58 * (9 * EXPERT + ROUTER) + TABLE
PARAMETERS = 671_026_419_200 - 58 * 256
P, BW = 1979e12, 4.8e12
LINEAR, CORE, GATHER = 0.98 + 0.02 / 0.35, 0.95 + 0.05 / 0.35, 0.70 + 0.30 / 0.35


def hit(tokens):
    return 256 * (1 - exp(-tokens / 32))


def moe_bytes(tokens):
    return 58 * (ROUTER + EXPERT * (hit(tokens) + 1))


def flops(tokens, pairs):
    """Attention, embedding, experts, ffn, head."""
    attention = 61 * (2 * tokens * MATRICES + 128 * pairs * 641)
    experts = 58 * 2 * tokens * (ROUTER + 9 * EXPERT)
    return attention, tokens * 7168, experts, 6 * tokens * DENSE, 2 * tokens * TABLE


def moving(tokens, operands):
    """Bytes of activations of the five lines before fusion."""
    experts = 58 * tokens * (7168 + 256 + 9 * 3 * (7168 + 2048))
    dense = 3 * 3 * tokens * (7168 + 18432)
    return 61 * operands * tokens * 7168, tokens * 7168, experts, dense, tokens * (7168 + 129280)


def decode_bytes(b, context, efficient=True):
    kv = 61 * 576 * b * (context + 1)
    dense = 61 * MLA + 3 * DENSE + 2 * TABLE
    if efficient:
        return dense / 4 + moe_bytes(b) / 2 + sum(moving(b, 7)) / 2 + kv + 0.7 * b * 128 * 61
    return dense + moe_bytes(b) + sum(moving(b, 7)) + kv + 2 * b * 128 * context * 61


def fused_prefill_bytes():
    """Touched weights once, activations halved, the cache written, a row of scores."""
    weights = 61 * MLA + 3 * DENSE + 2 * TABLE + moe_bytes(2040)
    return weights + sum(moving(2040, 5)) / 2 + 61 * 576 * 2040 + 0.7 * 2040 * 128 * 61


def decode_compute(b, context):
    """F_realizable of a decode step with b < 64 or experts' rows below 64 charged as M/64."""
    attention, embedding, experts, dense, head = flops(b, b * context)
    rows = round((8 * max(1, b * 8 / hit(b)) + b) / 9)
    eta, eta_experts = min(1, b / 64), min(1, rows / 64)
    rest = 0.02 / 0.35
    return (
        attention * (0.95 / eta + 0.05 / 0.35)
        + embedding * (0.7 / eta + 0.3 / 0.35)
        + experts * (0.98 / eta_experts + rest)
        + (dense + head) * (0.98 / eta + rest)
    )


def first_batch(efficient, turned):
    """Step by step, where the claims bisect."""
    for b in range(1, 5000):
        nbytes = decode_bytes(b, 255, efficient)
        if turned and decode_compute(b, 255) / P >= nbytes / BW:
            return b
        if not turned and sum(flops(b, b * 255)) / nbytes >= P / BW:
            return b
    return None


def pairs_ratio(s):
    return sum(flops(8 * s, 8 * s * s)) / sum(flops(8 * s, 8 * s * (s + 1) / 2))


def causal_prefill(s):
    attention, embedding, *linear = flops(8 * s, 8 * s * (s + 1) / 2)
    return (attention * CORE + embedding * GATHER + sum(linear) * LINEAR) / P


def line_by_line(efficient):
    """Attention, ffn and head wait for compute, embedding and experts for memory."""
    attention, _, _, dense, head = flops(2040, 8 * 255**2)
    _, gathered, experts, _, _ = moving(2040, 5)
    over, over_moe, fusion = (4, 2, 0.5) if efficient else (1, 1, 1)
    nbytes = TABLE / over + gathered * fusion + moe_bytes(2040) / over_moe + experts * fusion
    return (attention * CORE + (dense + head) * LINEAR) / P + nbytes / BW


def token(context):
    """FLOPs of one absorbed token, everything counted."""
    return 2 * ACTIVE + 2 * 61 * 128 * 1088 * context


def gpu(b, context, ep=64):
    """Seconds of compute, HBM and InfiniBand for b sequences a GPU."""
    own = 61 * MLA + 3 * DENSE + TABLE + 58 * (ROUTER + EXPERT * (1 + hit(b * ep) / ep))
    nbytes = own + b * 61 * 576 * (context + 1)
    return b * token(context) / P, nbytes / BW, b * 58 * 2 * 8 * 7168 / 50e9


def sufficient(context):
    return next(2**n for n in range(20) if gpu(2**n, context)[0] >= 0.9 * gpu(2**n, context)[1])


def grid_intensity(context):
    """K = 2, hidden x 0.75, rank x 0.5, naive: H 5376, widths 13824 and 1536."""
    expert, router = 3 * 5376 * 1536, 5376 * 256
    d = 256 * (1 - exp(-8 * 2 / 256))
    attention = 0.75 * 0.75
    f = attention * flops(8, 8 * context)[0] + 8 * 5376 + 58 * 16 * (router + 3 * expert)
    f += 3 * 2 * 8 * 3 * 5376 * 13824 + 2 * 8 * 5376 * 129280
    nbytes = attention * 61 * MLA + 58 * (router + expert * (d + 1)) + 3 * 3 * 5376 * 13824
    nbytes += 2 * 5376 * 129280 + 0.5 * 61 * 576 * 8 * (context + 1) + 61 * 2 * 8 * 128 * context
    nbytes += 61 * 7 * 8 * 5376 + 8 * 5376 + 58 * 8 * (5376 + 256 + 3 * 3 * (5376 + 1536))
    return f, nbytes + 3 * 3 * 8 * (5376 + 13824) + 8 * (5376 + 129280)


def uncoupled_rank_effect():
    """216 efficient points, each its bytes; attention's weights scaled by hidden² alone."""
    seconds = {0.5: [], 1.0: [], 1.5: []}
    for rank, times in seconds.items():
        for hs in (0.75, 1, 1.25):
            for k in (2, 4, 8):
                for kv in (1, 2):
                    for context in (2048, 4096, 8192, 16384):
                        h, f, m = 7168 * hs, 18432 * hs, 2048 * hs
                        moe = h * 256 + 3 * h * m * (256 * (1 - exp(-8 * k / 256)) + 1)
                        dense = hs * hs * 61 * MLA + 9 * h * f + 2 * h * 129280
                        act = 61 * 7 * h + h + 58 * (h + 256 + (k + 1) * 3 * (h + m))
                        act += 9 * (h + f) + h + 129280
                        cache = rank * kv * 61 * 576 * 8 * (context + 1)
                        nbytes = dense / 4 + 58 * moe / 2 + 8 * act / 2 + cache + 0.7 * 8 * 128 * 61
                        times.append(nbytes / BW)
    medians = [statistics.median(all_of_it) for all_of_it in seconds.values()]
    return max(medians) / min(medians) - 1


def experts_apart():
    """Routed products at M = 1024/251.3 = 4.07 of 64, the shared expert and the router full."""
    routed = 58 * 2 * 128 * 8 * EXPERT * (0.98 * 64 / (1024 / hit(128)) + 0.02 / 0.35)
    return (routed + 58 * 2 * 128 * (EXPERT + ROUTER) * LINEAR) / P


ATTENTION_BYTES = 61 * MLA / 4 + 61 * 7 * 8 * 7168 / 2 + 61 * 576 * 8 * 256 + 0.7 * 8 * 128 * 61
EXPERT_BYTES = moe_bytes(8) / 2 + moving(8, 7)[2] / 2
TOUCHED = 61 * MLA + 3 * DENSE + 2 * TABLE + moe_bytes(8)

# By the claim's letter and number, in the claims' order.
HAND = {
    "A1": [128 * 641, 128 * 641 / 576, 128 * (2 * 576 + 2 * 512 + 1), 128 * 2177 / 576,
           128 * 2177 / 1152, 2177 / 641, 2 * 512 * 256 / 641, 128 * (192 + 128) / 576],
    "A2": [token(2048) / (61 * 576 * 2048), token(16384) / (61 * 576 * 16384), sufficient(2048),
           sufficient(16384)],
    "A3": [(61 * (2 * MATRICES + 128 * 641 * 2048) + 58 * 2 * (ROUTER + 8 * EXPERT))
           / (58 * 2 * 8 * 7168), 1979e12 / 450e9, 1979e12 / 50e9,
           token(2048) / (58 * 16 * 7168) / 1e3, token(16384) / (58 * 16 * 7168) / 1e3,
           max(n for n in (2048, 4096, 8192, 16384) if gpu(128, n)[2] == max(gpu(128, n)))],
    "A4": [2048 * 2048 * 61 * 576 / 1e9, 16384 * 4096 * 61 * 576 / 1e9],
    "A5": [60 * 2**20 / 1e6, TOUCHED / 2**30, 1e3 * TOUCHED / BW, 1e3 * decode_bytes(8, 255) / BW,
           1e3 * fused_prefill_bytes() / BW, 2e3 * fused_prefill_bytes() / BW],
    "A6": [grid_intensity(2048)[0] / grid_intensity(2048)[1],
           grid_intensity(16384)[0] / grid_intensity(16384)[1],
           sum(flops(8, 8 * 255)) / decode_bytes(8, 255),
           sum(flops(8, 8 * 163840)) / decode_bytes(8, 163840),
           flops(8, 8 * 255)[0] / ATTENTION_BYTES, flops(8, 8 * 255)[2] / EXPERT_BYTES,
           100 * EXPERT_BYTES / decode_bytes(8, 255)],
    "A7": [PARAMETERS / 141e9, first_batch(True, False), first_batch(False, False),
           first_batch(True, True), first_batch(False, True)],
    "B8": [pairs_ratio(255), pairs_ratio(4096), pairs_ratio(32768), pairs_ratio(163840),
           causal_prefill(163840)],
    # 180 thousand hours of 3,600 s for 1e12 tokens; FLOPs of a token at S = 4096, causal.
    "B9": [1 / LINEAR, 1 / CORE,
           2040 / (3 * causal_prefill(255) + 3 * 61 * 128 * 641 * CORE * 8 * 255 * 127 / P)
           * 180e3 * 3600 / 1e12,
           100 * 3 * (2 * ACTIVE + 2 * 61 * 128 * 320 * 4097 / 2) / (180e-9 * 3600) / P],
    "B10": [0.35 * 1979, 0.35 * 1979 / 66.9, 0.05 * 641],
    "B11": [1e3 * flops(128, 0)[2] * (0.98 * 64 / 18 + 0.02 / 0.35) / P, 1e3 * experts_apart()],
    "B12": [1e3 * line_by_line(True), 1e3 * line_by_line(False)],
    # (7168 + 1536) + (1536 + 24576) + (7168 + 576) + (512 + 32768) + (16384 + 7168), then q k v o.
    "B13": [8704 + 26112 + 7744 + 33280 + 23552 + 2 * 24576 + 2 * 16384, 181_312 / 35_840,
            (5 * 7168 / 2 + 576 + 0.7 * 128 + MLA / 4 / (8 * 163840)) / 1e3,
            163840 * 40960 / 128 / 1e6, 128 * 641 / 320],
    "B14": [3.125],
    "B15": [28 * PARAMETERS / 1e12,
            2 * (61 * MLA + 3 * DENSE + 2 * TABLE + moe_bytes(2040) + sum(moving(2040, 5))
                 + 61 * 576 * 2040 + 61 * 2 * 8 * 128 * 255**2) / 1e12],
    "B16": [57.344, TABLE / 2**30, 2 * 2040 * TABLE / 1e12,
            100 * 2 * 2040 * TABLE / sum(flops(2040, 8 * 255**2)), 2 * 8 * TABLE / 1e12],
    "C17": [100 * (141 * 1024**3 / 141e9 - 1)],
    "C18": [hit(1), 100 * (1 - hit(8) / (256 * (1 - (31 / 32) ** 8)))],
    "C19": [1e3 * decode_bytes(1, 255) / BW],
    "C20": [100 * uncoupled_rank_effect()],
}  # fmt: skip

CLAIMS = claims()
NUMBERS = Counter(claim.at for claim in CLAIMS)


def plain(claim: Claim) -> float:
    return HAND[claim.at][[c for c in CLAIMS if c.at == claim.at].index(claim)]


def test_every_claim_has_its_arithmetic():
    assert {at: len(numbers) for at, numbers in HAND.items()} == dict(NUMBERS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: f"{c.at} {c.stated} {c.says}")
def test_recomputed_from_the_rules_as_by_plain_figures(claim):
    assert claim.recomputed() == pytest.approx(plain(claim), rel=1e-9)


def test_what_is_not_confirmed():
    """Two: the H100's L2 for the H200's, and eight sequences' bytes for one's."""
    wrong = [(claim.at, claim.stated) for claim in CLAIMS if not claim.confirmed]
    assert wrong == [("A5", "50"), ("B13", "148")]
    eight = 8 * (5 * 7168 / 2 + 576)
    assert eight / 1e3 == pytest.approx(148, abs=0.05)


def test_confirmed_needs_the_printed_places():
    """A claim off by one in its last place fails, so `confirmed` can."""
    for claim in CLAIMS:
        places = len(claim.stated.partition(".")[2])
        off = float(claim.stated.replace(",", "")) + 2 * 10.0**-places
        assert not Claim(claim.at, "", f"{off:.{places}f}", "", claim.recomputed).confirmed


def test_infiniband_is_the_limit_up_to_8192():
    """A3: 128 sequences a GPU, 64 GPUs; at 16384 the attention of long contexts outweighs it."""
    assert [max(gpu(128, n)) == gpu(128, n)[2] for n in (2048, 4096, 8192)] == [True] * 3
    compute, memory, network = gpu(128, 16384)
    assert compute > memory > network


def test_measured_products_stay_below_the_ceiling():
    """B9: measured FP8 block products reach 0.72 of the peak at most; experts' shapes less."""
    path = Path(__file__).parents[3] / "shared" / "measured" / "gemm_h200_sxm.csv"
    if not path.is_file():
        pytest.skip("no ../shared/measured")
    shares = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            times = [float(t) for name, t in row.items() if name.endswith("_us") and t]
            if row["gemm_dtype"] == "fp8_block" and times:
                m, n, k = (int(row[x]) for x in "mnk")
                shares[m, n, k] = 2 * m * n * k / (min(times) * 1e-6) / P
    assert max(shares.values()) == pytest.approx(0.72, abs=5e-3)
    gate_up, down = (4096, 7168), (7168, 2048)
    of = {m: sorted(shares[m, *size] for size in (gate_up, down)) for m in (1024, 4096)}
    assert of[4096] == pytest.approx([0.61, 0.65], abs=5e-3)
    assert of[1024] == pytest.approx([0.44, 0.49], abs=5e-3)
