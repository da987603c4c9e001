"""The multi-token-prediction module of DeepSeek-V3 (arXiv 2412.19437, section 2.2), by module.

One more MoE layer behind a joint projection of 2D to D, with norms of its own, and with embedding
and head shared with the main model, which run a second time.
"""

import pytest
import torch
from family_traces import LAYERS, V3, by_module, flops, weights_read
from mla_formulas import BF16, Dims, forward_flops, linear_flops, weight_bytes

from tracer.capture import Capture
from tracer.capture.records import BACKWARD, FORWARD
from tracer.cost import Ledger, price
from tracer.models import build, bundled_config

MAIN = LAYERS[V3]
MTP = f"model.layers.{MAIN}"
# An MTP module is a layer more, and the norms in it follow from that.
DIMS = Dims.of(bundled_config(V3), MAIN + 1)


def run(batch: int, seq: int, *, training: bool) -> Ledger:
    config = bundled_config(V3) | {"num_hidden_layers": MAIN}
    model = build(config, mtp=True, training=training)
    ids = torch.zeros(batch, seq, dtype=torch.long, device="meta")
    with torch.set_grad_enabled(training), Capture(model) as capture:
        main, drafted = model(ids, next_ids_BS=ids)
        if training:
            (main.float().sum() + drafted.float().sum()).backward()
    return price(capture.trace)


def expected(batch: int, seq: int) -> dict[str, int]:
    tokens = batch * seq
    want = forward_flops(DIMS, batch, seq)
    want["lm_head"] *= 2
    want[f"{MTP}.eh_proj"] = linear_flops(tokens, (2 * DIMS.hidden, DIMS.hidden))
    return want


@pytest.mark.parametrize(("batch", "seq"), [(1, 4096), (3, 255)])
def test_mtp_flops(batch, seq):
    assert by_module(run(batch, seq, training=False), flops) == expected(batch, seq)


def test_mtp_training_is_three_forwards():
    priced = run(2, 64, training=True)
    forward = expected(2, 64)
    assert by_module(priced, flops, phase=FORWARD) == forward
    assert by_module(priced, flops, phase=BACKWARD) == {m: 2 * f for m, f in forward.items()}


def test_mtp_weights():
    """Each of its own once; embedding and head are read again, by a second pass over the tokens."""
    batch, seq = 3, 255
    want = weight_bytes(DIMS, batch * seq)
    want["lm_head"] *= 2
    want["model.embed_tokens"] *= 2
    want["model"] *= 2  # rotary frequencies: angles are computed again for the drafted positions
    want[f"{MTP}.eh_proj"] = 2 * DIMS.hidden * DIMS.hidden * BF16
    for norm in ("enorm", "hnorm", "shared_head.norm"):
        want[f"{MTP}.{norm}"] = DIMS.hidden * BF16
    read = by_module(run(batch, seq, training=False), weights_read)
    # The second set of angles is made outside of `model`, by the head that drafts.
    read["model"] += read.pop("(none)", 0)
    assert read == want
