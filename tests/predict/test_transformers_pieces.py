"""Stages put together from pieces, against the same stages traced as a whole."""

import pytest
from transformers import GptOssConfig, LlamaConfig, MixtralConfig, Qwen3MoeConfig

from tracer.capture.huggingface import HuggingFaceProgram
from tracer.capture.huggingface.stage import layers_of
from tracer.capture.workload import Workload, record
from tracer.cost import price
from tracer.parallel.network import network_of
from tracer.parallel.plan import Plan
from tracer.predict import pieces
from tracer.predict.links import Links
from tracer.predict.structure import Kernels, groups_on

SIZES = {
    "hidden_size": 256, "intermediate_size": 512, "vocab_size": 512, "num_attention_heads": 8,
    "num_key_value_heads": 4,
}  # fmt: skip
CONFIGS = {
    "llama": lambda: LlamaConfig(**SIZES, num_hidden_layers=18),
    "mixtral": lambda: MixtralConfig(
        **SIZES, num_hidden_layers=18, num_local_experts=8, num_experts_per_tok=2
    ),
    "qwen": lambda: Qwen3MoeConfig(  # its first layer is dense
        **SIZES, num_hidden_layers=18, num_experts=8, num_experts_per_tok=2, head_dim=32,
        moe_intermediate_size=128, mlp_only_layers=[0],
    ),
    # Its plan for TP ranks names nothing in a layer: ends that TP cuts go with layers that EP does.
    "gpt_oss": lambda: GptOssConfig(
        **SIZES, num_hidden_layers=18, num_local_experts=8, num_experts_per_tok=2, head_dim=32,
        layer_types=["full_attention"] * 18,
    ),
}  # fmt: skip
LAYER = 2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 512 + 2 * 256  # parameters of Llama's
NETWORK, KERNELS = network_of("h100_ib"), Kernels()


@pytest.mark.parametrize(
    ("name", "words", "phase"),
    [
        ("llama", "", "training"), ("llama", "tp2 cp2 recompute=full", "training"),
        ("llama", "dp4 fsdp", "training"), ("llama", "tp2", "decode"),
        ("mixtral", "tp2 ep4 dp2 recompute=selective", "training"),
        ("mixtral", "tp2 ep2", "prefill"),
        ("qwen", "ep4 dp4", "training"), ("gpt_oss", "tp2 ep4 dp2", "training"),
    ],
)  # fmt: skip
def test_pieces_are_what_whole_stages_are(name, words, phase):
    """Three stages of six layers; FLOPs, parameters and messages exactly.

    A seam keeps two elementwise kernels from being one: hundredths, where a layer is this small.
    Of the states that cross it, T·D in BF16, up to two are held too many.
    """
    program = HuggingFaceProgram(name, CONFIGS[name]())
    plan, work = Plan.parse(f"{words} pp3"), Workload(phase, 1, 512, 512)
    links = Links(NETWORK, groups_on(plan, NETWORK), kernel="nccl")
    kinds = layers_of(program).kinds
    for place in range(3):
        layers = range(6 * place, 6 * place + 6)
        whole = pieces.traced(
            program, work, plan, place, layers, KERNELS, NETWORK, False
        ).block(links, plan)  # fmt: skip
        ends = place == 0, place == 2
        block = pieces.stage(
            program, work, plan, layers, kinds[layers.start : layers.stop], ends, KERNELS, links,
            False,
        )  # fmt: skip
        assert block.passes.cost.flops == whole.passes.cost.flops
        assert block.passes.cost.messages == whole.passes.cost.messages
        assert block.parameters == whole.parameters
        assert block.kv == whole.kv
        for direction in ("forward", "backward"):
            messages = whole.passes.messages(direction)
            # fully_shard of a whole stage gathers what is beside the layers in one message.
            rel = 0.05 if plan.zero == 3 else 1e-9
            assert block.passes.messages(direction) == pytest.approx(messages, rel=rel)
            for weight in (False, True):
                seconds = whole.passes.seconds(direction, weight=weight)
                got = block.passes.seconds(direction, weight=weight)
                assert got == pytest.approx(seconds, rel=0.04 if phase == "decode" else 0.02)
        assert block.weights == whole.weights
        state = 0 if phase != "training" or place == 1 else 512 // plan.cp * 256 * 2
        ids = 2 * 8 * 512  # and the mask
        passing = 2 * 512 * 256 * 2 + (2 * LAYER if plan.zero == 3 else 0)  # a gathered layer
        assert whole.update - ids <= block.update <= whole.update + passing + ids
        assert whole.saved - 1 <= block.saved <= whole.saved + 2 * state + ids
        assert block.passes.hop == (0 if place == 2 else whole.passes.hop) or place == 2
        # What the head keeps is gone when layers need most: here it counts on top of that.
        head = 512 // plan.cp * (512 * 4 + 256 * 8 + 16) if ends[1] else 0
        peak, other = block.saved + block.working, whole.saved + whole.working
        assert (
            other - ids <= peak <= other + (head + 3 * state + ids if phase == "training" else 1e5)
        )


def test_a_piece_is_traced_once_for_all_lengths(monkeypatch):
    """Stages of 9 and of 6 layers, first ones and last ones: one piece of layers, and two ends."""
    from tracer.capture.huggingface import sharded

    seen, record_rank = [], sharded.record_rank

    def counted(*args, **kwargs):
        seen.append(len(kwargs["layers"]))
        return record_rank(*args, **kwargs)

    monkeypatch.setattr(sharded, "record_rank", counted)
    program, work = HuggingFaceProgram("llama", CONFIGS["llama"]()), Workload("training", 1, 512)
    for pp in (2, 3):
        plan = Plan(pp=pp)
        links = Links(NETWORK, groups_on(plan, NETWORK), kernel="nccl")
        each = 18 // pp
        for stage in range(pp):
            ends = stage == 0, stage == pp - 1
            pieces.stage(
                program, work, Plan(pp=3), range(each), (0,) * each, ends, KERNELS, links, False
            )
    assert sorted(seen) == [0, 0, 4]


@pytest.mark.parametrize("phase", ["training", "prefill", "decode"])
def test_layers_that_differ_by_a_window_are_folded(phase):
    """Ten layers of two kinds run as six; an optimizer updates whatever may be trained."""
    config = GptOssConfig(
        **SIZES, num_hidden_layers=10, num_local_experts=4, num_experts_per_tok=2, head_dim=32,
        sliding_window=64,
    )  # fmt: skip
    program, work = HuggingFaceProgram("gpt", config), Workload(phase, 2, 128, 128, "none")
    folded, whole = pieces.alone(program, work), record(program, work)
    assert sum(op.times for op in folded.ops) > len(folded.ops)
    assert len(whole.ops) == sum(op.times for op in whole.ops)
    assert price(folded).total() == price(whole).total()
