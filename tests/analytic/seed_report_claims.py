"""What a review said against the seed report, number by number, worked out again.

Each `Claim` has the figure as stated, the same from the report's rules or plain arithmetic
(`recomputed`), and where a trace can say something about it, what it says (`traced`). Letters are
the review's: A reverses a conclusion, B is off by a factor under the same label, C is small.
`test_seed_critique.py` works every one out once more, in plain numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import seed_report_corrections as corrected
import seed_report_rules as rules
import seed_report_studies as studies
import seed_report_traced as traced
from mla_formulas import distinct_experts
from seed_report_corrections import (
    DISPATCH,
    INFINIBAND,
    NVLINK,
    PUBLISHED_TRAINING,
    cache_bytes,
    token_flops,
)
from seed_report_rules import (
    ATTENTION,
    BANDWIDTH,
    EFFICIENT,
    EXPERTS,
    FUSED,
    HEAD,
    KNEE,
    NAIVE,
    PEAK,
    V3,
    Step,
)
from seed_report_traced import Point, anchor, ledger, lines, times


@dataclass(frozen=True)
class Claim:
    """One number.

    Attributes:
        at: the review's letter and number.
        says: what it is.
        stated: as printed; confirmed if the recomputed value rounds to it.
        unit: of all three figures.
        recomputed: the same from rules or arithmetic.
        traced: the trace's own figure for the same thing, if it has one.
        remark: what the difference is, where there is one.
    """

    at: str
    says: str
    stated: str
    unit: str
    recomputed: Callable[[], float]
    traced: Callable[[], float] | None = None
    remark: str = ""

    @property
    def confirmed(self) -> bool:
        """Whether it rounds to what was stated."""
        figure = self.stated.replace(",", "")
        decimals = len(figure.partition(".")[2])
        return abs(self.recomputed() - float(figure)) <= 0.5001 * 10.0**-decimals


_decode, _prefill, _training = rules.decode, rules.prefill, rules.training


def claims() -> list[Claim]:
    """All of them, in the review's order."""
    return [*reversing(), *by_a_factor(), *small()]


def _ms(seconds: Callable[[], float]) -> Callable[[], float]:
    return lambda: 1e3 * seconds()


def _step(phase: str, execution: str = "efficient") -> Callable[[], float]:
    """The traced step at the anchor, in ms."""
    return _ms(lambda: times(anchor(phase, execution)).step)


def _weights() -> int:
    return ledger(anchor("decode")).total().bytes_by_role["weights"]


def _ridge(step: Step) -> bool:
    return bool(step.intensity >= KNEE)


def _turned(step: Step) -> bool:
    return step.regime == "compute-bound"


def reversing() -> list[Claim]:
    """A: errors that reverse a conclusion."""
    return [
        Claim("A1", "FLOPs of a cached token and layer, in head space", "82,048", "",
              corrected.head_space_pair),
        Claim("A1", "over the 576 bytes of the latent: no kernel's ratio", "142", "FLOP/B",
              lambda: corrected.head_space_pair() / V3.latent),
        Claim("A1", "FLOPs of a cached token and layer, absorbed", "278,656", "",
              corrected.latent_pair, traced.pair, "128 softmax FLOPs are vector work in the trace"),
        Claim("A1", "absorbed, over one-byte latents", "484", "FLOP/B",
              lambda: corrected.latent_pair() / V3.latent),
        Claim("A1", "absorbed, over BF16 latents", "242", "FLOP/B",
              lambda: corrected.latent_pair() / (2 * V3.latent), traced.pair_intensity,
              "right of BF16's ridge, 206"),
        Claim("A1", "absorbed over head space, FLOPs", "3.4", "×",
              lambda: corrected.latent_pair() / corrected.head_space_pair()),
        Claim("A1", "re-expanding the cache, FLOPs over head space", "409", "×",
              corrected.expansion, remark="the expansion alone; with the core after it 410"),
        Claim("A1", "cache of expanded keys and values, over latents", "71", "×",
              lambda: V3.heads * (V3.qk + V3.v) / V3.latent),
        Claim("A2", "FLOP/B at infinite batch, L=2048, everything counted", "1501", "FLOP/B",
              lambda: token_flops(2048) / cache_bytes(2048)),
        Claim("A2", "the same at L=16384", "611", "FLOP/B",
              lambda: token_flops(16384) / cache_bytes(16384)),
        Claim("A2", "B a GPU that suffices for HBM at EP=64, L=2048", "128", "",
              lambda: corrected.sufficient_batch(64, 2048)),
        Claim("A2", "the same at L=16384", "128", "",
              lambda: corrected.sufficient_batch(64, 16384)),
        Claim("A3", "network intensity, EP=1, L=2048, the report's FLOPs", "11,149", "FLOP/B",
              lambda: studies.flops_per_sequence(1, 2048) / DISPATCH),
        Claim("A3", "ridge of NVLink one way", "4,398", "FLOP/B", lambda: PEAK / NVLINK),
        Claim("A3", "ridge of 400 Gb/s InfiniBand", "39,580", "FLOP/B", lambda: PEAK / INFINIBAND),
        Claim("A3", "network intensity, everything counted, L=2048", "16", "k FLOP/B",
              lambda: token_flops(2048) / DISPATCH / 1e3),
        Claim("A3", "the same at L=16384", "53", "k FLOP/B",
              lambda: token_flops(16384) / DISPATCH / 1e3),
        Claim("A3", "L up to which InfiniBand is the limit, EP=64, B=128", "8192", "",
              lambda: corrected.network_bound_up_to(64, 128)),
        Claim("A4", "KV of B=2048 at L=2048", "147", "GB", lambda: 2048 * cache_bytes(2048) / 1e9),
        Claim("A4", "KV of EP=2's B=16384 at L=4096", "2,358", "GB",
              lambda: (studies.crossing(2, 4096).batch or 0) * cache_bytes(4096) / 1e9),
        Claim("A5", "L2, which would have to hold weights between steps", "50", "MB",
              lambda: traced.chip().l2 / 1e6, remark="the H100's; an H200 reports 60 MiB"),
        Claim("A5", "touched weights of decode, B=8", "150.65", "GiB",
              lambda: _decode(8, 255, NAIVE).sum("weights") / 2**30, lambda: _weights() / 2**30,
              "block scales; BF16 head, gate and absorbed matrices; top-8 exactly; no whole table"),
        Claim("A5", "their time at full bandwidth", "33.7", "ms",
              _ms(lambda: _decode(8, 255, NAIVE).sum("weights") / BANDWIDTH),
              _ms(lambda: _weights() / BANDWIDTH), "no step is faster than this"),
        Claim("A5", "efficient decode's time", "16.1", "ms",
              _ms(lambda: _decode(8, 255).seconds), _step("decode"), "less than half the floor"),
        Claim("A5", "prefill without residency, fusion kept", "143.5", "ms",
              _ms(lambda: _prefill(8, 255, FUSED).seconds), _step("prefill"),
              "HBM-bound; with residency 81.1 ms and compute-bound"),
        Claim("A5", "training without residency, fusion kept", "287.0", "ms",
              _ms(lambda: _training(8, 255, FUSED).seconds), _step("training"),
              "with residency 243.2 ms; the trace has an optimizer step too"),
        Claim("A6", "FLOP/B of the grid's fastest naive point, L=2048", "7.33", "FLOP/B",
              lambda: studies.grid_step(NAIVE, 1, 2, 0.5, 0.75, 2048).intensity),
        Claim("A6", "the same at L=16384: it rises", "15.37", "FLOP/B",
              lambda: studies.grid_step(NAIVE, 1, 2, 0.5, 0.75, 16384).intensity),
        Claim("A6", "efficient decode, L=255", "7.70", "FLOP/B",
              lambda: _decode(8, 255).intensity, lambda: traced.intensity(255)),
        Claim("A6", "the same at L=163,840", "57.9", "FLOP/B",
              lambda: _decode(8, 163840).intensity, lambda: traced.intensity(163840),
              "the trace rises too"),
        Claim("A6", "attention alone, efficient decode, L=255", "65.6", "FLOP/B",
              lambda: traced.line_intensity(_decode(8, 255).lines[ATTENTION]),
              lambda: traced.line_intensity(lines(anchor("decode"))[ATTENTION]),
              "above the experts' in both"),
        Claim("A6", "experts alone", "5.0", "FLOP/B",
              lambda: traced.line_intensity(_decode(8, 255).lines[EXPERTS]),
              lambda: traced.line_intensity(lines(anchor("decode"))[EXPERTS])),
        Claim("A6", "experts' share of decode's bytes", "95", "%",
              lambda: 100 * _decode(8, 255).lines[EXPERTS].bytes_hbm
              / _decode(8, 255).sum("bytes_hbm"),
              lambda: 100 * lines(anchor("decode"))[EXPERTS].bytes_hbm
              / ledger(anchor("decode")).total().total_bytes),
        Claim("A7", "GPUs that FP8 weights alone fill", "4.8", "",
              lambda: rules.parameter_count() / 141e9),
        Claim("A7", "B at which efficient decode reaches the ridge", "2042", "",
              lambda: studies.critical_batch(EFFICIENT, _ridge, 255)),
        Claim("A7", "the same, naive", "4489", "",
              lambda: studies.critical_batch(NAIVE, _ridge, 255)),
        Claim("A7", "B at which the time model turns, efficient", "1924", "",
              lambda: studies.critical_batch(EFFICIENT, _turned, 255)),
        Claim("A7", "the same, naive", "4209", "",
              lambda: studies.critical_batch(NAIVE, _turned, 255)),
    ]  # fmt: skip


def by_a_factor() -> list[Claim]:
    """B: wrong by a factor under the same label."""
    return [
        *(Claim("B8", f"FLOPs with all pairs over causal, S={seq:,}", stated, "×",
                lambda seq=seq: corrected.without_causality(seq),
                lambda seq=seq: traced.causality(seq))
          for seq, stated in ((255, "1.009"), (4096, "1.12"), (32768, "1.53"), (163840, "1.85"))),
        Claim("B8", "efficient prefill at S=163,840, causal", "347.9", "s",
              lambda: corrected.causal_seconds(163840), remark="the report: 644.7 s"),
        Claim("B9", "ceiling of a linear line", "0.964", "of peak",
              lambda: corrected.ceiling(HEAD), traced.best_share_of_peak,
              "the trace: the best FP8 product of prefill at S=4096"),
        Claim("B9", "ceiling of the attention line", "0.915", "of peak",
              lambda: corrected.ceiling(ATTENTION)),
        Claim("B9", "training tokens/s over the published 1,543", "5.4", "×",
              lambda: _training(8, 255).tokens_per_s / PUBLISHED_TRAINING),
        Claim("B9", "what was published, of the FP8 peak", "19.5", "%",
              lambda: 100 * corrected.published_mfu()),
        Claim("B10", "\"scalar\" rate", "693", "TFLOP/s", lambda: rules.SCALAR * PEAK / 1e12),
        Claim("B10", "over the vector units' FP32 rate", "10", "×",
              lambda: rules.SCALAR * PEAK / traced.chip().vector["fp32"]),
        Claim("B10", "5% scalar over the softmax's share of the core", "32", "×",
              lambda: (1 - rules.TENSOR_SHARE[ATTENTION]) * corrected.head_space_pair() / V3.heads),
        Claim("B11", "T_comp of experts at B=128, mean M", "10.6", "ms",
              _ms(lambda: _decode(128, 255).lines[EXPERTS].compute_seconds)),
        Claim("B11", "the same, M kept apart", "41.2", "ms",
              _ms(lambda: corrected.experts_kept_apart(128))),
        Claim("B12", "prefill, efficient, line after line", "103.3", "ms",
              _ms(lambda: _prefill(8, 255).seconds_line_by_line), _step("prefill"),
              "the report: 81.1 ms"),
        Claim("B12", "prefill, naive, line after line", "175.0", "ms",
              _ms(lambda: _prefill(8, 255, NAIVE).seconds_line_by_line), _step("prefill", "naive"),
              "the report: 148.9 ms"),
        Claim("B13", "elements through MLA's products, a token and layer", "181,312", "",
              corrected.attention_operands, traced.operands,
              "the trace adds an FP32 log-sum-exp a row and head"),
        Claim("B13", "over the report's 5 H", "5.1", "×",
              lambda: corrected.attention_operands() / (5 * V3.hidden)),
        Claim("B13", "bytes of flash prefill at S=163,840, a token and layer", "148", "kB",
              lambda: _prefill(8, 163840).lines[ATTENTION].bytes_hbm
              / (V3.layers * 8 * 163840) / 1e3,
              remark="149 kB are those of all 8 sequences together; of one token it is 18.6"),
        Claim("B13", "K and V that 128-row tiles read there without L2", "52", "MB",
              lambda: 163840 / 128 * V3.heads * (V3.qk + V3.v) / 1e6,
              remark="a token's share of its tile, one byte an element, all S keys"),
        Claim("B13", "FLOP/B of such a tile", "256", "FLOP/B",
              lambda: 128 * corrected.head_space_pair() / (V3.heads * (V3.qk + V3.v))),
        Claim("B14", "FP8's scales, of an activation's bytes", "3", "%", lambda: 100 * 4 / 128,
              remark="an FP32 a 128 elements of a row; of a weight's, blocks of 128 x 128, 0.02 %"),
        Claim("B15", "one FP32 Adam step", "18.8", "TB",
              lambda: rules.parameter_count() * 7 * 4 / 1e12,
              lambda: lines(anchor("training"))["optimizer"].bytes_hbm / 1e12,
              "28 B a parameter; the trace: 24 of states, 2 of BF16 gradient, 2 of BF16 weight"),
        Claim("B15", "the report's whole naive training step", "1.43", "TB",
              lambda: _training(8, 255, NAIVE).sum("bytes_hbm") / 1e12,
              lambda: ledger(anchor("training", "naive")).total().total_bytes / 1e12),
        Claim("B16", "rows of the embedding that are read at B=8", "57", "kB",
              lambda: 8 * V3.hidden / 1e3,
              lambda: lines(anchor("decode"))["embedding"].weights / 1e3, "BF16 in the release"),
        Claim("B16", "the table that the report reads instead", "0.86", "GiB",
              lambda: V3.vocab * V3.hidden / 2**30),
        Claim("B16", "lm_head on all prefill tokens", "3.78", "TFLOP",
              lambda: _prefill(8, 255).lines[HEAD].flops / 1e12,
              lambda: lines(anchor("prefill"))[HEAD].flops / 1e12,
              "the trace does the same: logits at every position"),
        Claim("B16", "its share of prefill's FLOPs", "2.5", "%",
              lambda: 100 * _prefill(8, 255).lines[HEAD].flops / _prefill(8, 255).sum("flops"),
              lambda: 100 * lines(anchor("prefill"))[HEAD].flops
              / ledger(anchor("prefill")).total().total_flops),
        Claim("B16", "lm_head on the last tokens", "0.015", "TFLOP",
              lambda: _decode(8, 255).lines[HEAD].flops / 1e12,
              lambda: lines(anchor("decode"))[HEAD].flops / 1e12),
    ]  # fmt: skip


def small() -> list[Claim]:
    """C: units and small things."""
    return [
        Claim("C17", "the memory budget over the part's", "7", "%",
              lambda: 100 * (studies.BUDGET / traced.chip().memory_capacity - 1)),
        Claim("C18", "distinct experts of one token", "7.88", "",
              lambda: rules.distinct_experts(V3, 1), lambda: traced.distinct(1)),
        Claim("C18", "too few at B=8", "1.4", "%",
              lambda: 100 * (1 - rules.distinct_experts(V3, 8) / distinct_experts(V3, 8)),
              lambda: 100 * (1 - rules.distinct_experts(V3, 8) / traced.distinct(8))),
        Claim("C19", "a step of B=1, efficient", "3.13", "ms",
              _ms(lambda: _decode(1, 255).seconds),
              _ms(lambda: times(Point("decode", 1, 255, "efficient")).step)),
        Claim("C20", "effect of the KV rank without its hold on the projections", "3.1", "%",
              lambda: 100 * corrected.rank_effect_without_coupling()),
    ]  # fmt: skip
