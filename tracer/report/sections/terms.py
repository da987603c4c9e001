"""The usual vocabulary of roofline reports, and what each word is here."""

from __future__ import annotations

from ..blocks import Column, Formula, Section, Table, Text
from ..summary import Study

# term, its meaning here, unit, why where it differs
_TERMS: tuple[tuple[str, str, str, str], ...] = (
    ("F_theory", "FLOPs: those of matrix products and convolutions, 2 a multiply-add, summed over "
     "the ops that ran. Elementwise work, softmax and norms are vector FLOPs, apart.", "FLOP",
     "read off shapes of traced ops, so no formula can miss a module"),
    ("F_tensorcore", "The same FLOPs split by the precision of the operands: what matrix units can "
     "run.", "FLOP", "what is not a product is no FLOP here, so no eligible share is assumed"),
    ("F_realizable", "Not used. A kernel's compute time comes from its tiles, waves and clock.",
     "-", "one utilisation factor for all shapes misses measured products by tens of per cent"),
    ("eta_tc(B), M_eff, B_sat", "Not used. What a product reaches of the peak follows from its M, "
     "N, K.", "-", "M/64 is tile padding, not saturation: small products wait for memory first"),
    ("P_peak", "Dense matrix rate of the datasheet, in the precision of the operands.", "FLOP/s",
     ""),
    ("P_effective", "FLOPs over the estimated step: the rate of the results.", "FLOP/s",
     "an outcome of the time model, not an input to it"),
    ("WRF_attn/dense/moe", "`weight_residency`, one for all weights and 1 unless asked for: every "
     "touched weight is read once a kernel.", "ratio",
     "above 1 a step reads less than it must; weights of gigabytes stay in no cache"),
    ("W_eff", "Bytes of weights, by the same rule.", "B", ""),
    ("A, A_kv", "Not typed in: the width of an element is that of the traced tensor, scales of FP8 "
     "included.", "B", "one width for all activations is that of none of them"),
    ("C_kv", "KV cache of a layer: elements a token, in the model fingerprint.", "elements", ""),
    ("D", "distinct(E, k, T) = E (1 - (1 - k/E)^T): routed experts that T tokens hit.", "experts",
     "the exact expectation; exp(-T k/E) is near it, and below the k of one token"),
    ("activation_fusion_factor", "`activation_fusion`, 1 unless asked for. Fusion comes from the "
     "trace's dataflow: what one kernel makes and consumes is never written.", "ratio",
     "a factor on all activations hides which of them are fused"),
    ("elementwise_bytes_factor", "Not used. Fusion comes from the dataflow here too.", "-",
     "chains of softmax and norms are fused or not, one by one"),
    ("bytes_weights", "Bytes of parameters and buffers that kernels read; of routed experts, the "
     "expected number of distinct ones.", "B", ""),
    ("bytes_activations", "Bytes of tensors that cross a module boundary or are kept for the "
     "backward.", "B", ""),
    ("bytes_kv", "Bytes read from and written to caches.", "B", ""),
    ("bytes_temporary", "Bytes of tensors that live inside of one module.", "B", ""),
    ("bytes_total", "bytes_hbm: memory and links are never added.", "B", ""),
    ("bytes gradients, optimizer", "Bytes of parameter gradients and optimizer state.", "B",
     "training has them, and a factor on prefill does not show them"),
    ("bytes_hbm", "Sum of all roles: traffic of kernels with memory.", "B", ""),
    ("bytes_net", "Bytes sent between chips by collectives.", "B", "none on one chip"),
    ("AI_hbm", "FLOPs over bytes of memory traffic.", "FLOP/B", ""),
    ("AI_total", "Not used.", "-", "bytes of two links of different speed do not add up"),
    ("OI_knee", "Ridge: peak of the precision over memory bandwidth; of a step with several, where "
     "its FLOPs, each at its peak, take as long as its bytes.", "FLOP/B", ""),
    ("OI_inf_hbm(L)", "limit f / a: FLOP/B of decode as the batch grows without end.", "FLOP/B",
     "from bytes and FLOPs of the same kernels: both in latent space for MLA"),
    ("OI_net", "FLOP/B sent: FLOPs over bytes between chips, one way, of all layers.", "FLOP/B",
     ""),
    ("B_crit, min B_g", "The batch at which the FLOPs take as long as the bytes (alpha = 1), "
     "solved exactly; with what it would hold.", "sequences",
     "a sweep that stops before it says nothing, and a batch that does not fit is none"),
    ("T_comp", "compute: matrix FLOPs at the datasheet's peaks, or vector work if longer. What "
     "**waits for** compute is more: kernels below their peak, and copies and elementwise chains "
     "that their instructions bound.", "s", ""),
    ("T_hbm", "memory: all bytes at full bandwidth.", "s", ""),
    ("T_net", "Seconds of collectives that nothing hides.", "s", ""),
    ("T_est", "step: the sum over kernels on one stream.", "s",
     "max(T_comp, T_hbm) of whole sums lets everything overlap: that is **ideal**, a lower bound"),
    ("TF_est", "FLOPs over step.", "FLOP/s", ""),
    ("TF_roofline_hbm", "The roof: min(peak, bandwidth x FLOP/B), drawn in the figures.", "FLOP/s",
     ""),
    ("MFU", "FLOPs over step and over the peak of their precision, for efficient execution.",
     "ratio", "naive attention runs masked pairs too; a share of useful work means nothing there"),
    ("regime", "What the largest share of the time waits for: compute, memory, network, or "
     "latency (launch gaps).", "-", "decided kernel by kernel, not by the side of the ridge"),
    ("P10-P90", "Where the step lies in 8 of 10 cases if the constants err as their fits did.",
     "s", ""),
)  # fmt: skip


def section(study: Study) -> Section:
    """The table of terms and the chain from shapes to seconds."""
    return Section(
        "Key terms and units",
        (
            Text(
                "Seconds, bytes and FLOPs throughout. Prefixes are decimal: 1 kB is 1e3 bytes, "
                "1 GB is 1e9. CSV and JSON hold unrounded values in base units."
            ),
            Formula(
                "ops and shapes -> FLOPs by precision, bytes by role   (a formula an op)\n"
                "               -> kernels                             (fusion by dataflow)\n"
                "               -> seconds a kernel                    (a formula a family)\n"
                "step  = sum of kernel seconds\n"
                "ideal = max(sum of compute, sum of memory) <= step"
            ),
            Table(
                "terms",
                "Words of roofline reports, and what stands for them here.",
                (
                    Column("term", "term", "code"),
                    Column("here", "here"),
                    Column("unit", "unit"),
                    Column("why", "why so"),
                ),
                _TERMS,
            ),
        ),
    )
