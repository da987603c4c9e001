"""FLOPs equal torch's own counter, on the same run, wherever it has formulas for the ops.

Its convention: attention over all pairs, and the scores that a flash backward computes again are
FLOPs too. Ours keeps these apart as `recompute_flops`. Depthwise convolutions are left out: torch
takes the gradients of a grouped convolution for those of a dense one (ConvNeXt reads 2.8 times).
"""

from __future__ import annotations

import pytest
from tiny_models import default, ledger, trace
from torch.utils.flop_counter import FlopCounterMode

CAUSAL_LM = (
    "llama mistral qwen2 qwen3 gemma phi phi3 gpt2 gpt_neox opt stablelm starcoder2 olmo2 cohere "
    "granite helium glm smollm3 bloom gptj"
).split()
OTHERS = (
    "bert roberta distilbert electra albert modernbert t5 bart pegasus vit deit dinov2 "
    "resnet beit yolos clip siglip"
).split()


@pytest.mark.parametrize("kind", CAUSAL_LM + OTHERS)
def test_training_flops_equal_torchs_counter(kind: str) -> None:
    program = default(kind)
    with FlopCounterMode(display=False) as counter:
        found = trace(program, "training", seq=64)
    assert found.header["ground"] == "meta", "torch would count the work beside the trace, too"
    cost = ledger(found, causal="full").total()
    assert cost.total_flops + sum(cost.recompute_flops.values()) == counter.get_total_flops()
    assert counter.get_total_flops() > 0
