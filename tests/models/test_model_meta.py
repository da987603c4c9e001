"""Every bundled model runs without data: prefill, decode, training, BF16 and FP8."""

import pytest
import torch
from small_configs import FP8, V3
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)
from torch.utils._python_dispatch import TorchDispatchMode

from tracer.models import KVCache, build, bundled_config, bundled_ids


class Ops(TorchDispatchMode):
    """Names of the ops that were dispatched."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def four_layers(model_id):
    return {**bundled_config(model_id), "num_hidden_layers": 4}


def ids(batch, seq):
    return torch.empty(batch, seq, dtype=torch.long, device="meta")


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
@pytest.mark.parametrize("model_id", bundled_ids())
def test_inference(model_id, precision):
    config = four_layers(model_id)
    model = build(config, precision=precision).prepare_decode()
    vocab = config["vocab_size"]
    cache = KVCache(model.config, 2, 5000)
    assert model(ids(2, 100), cache, "last").shape == (2, 1, vocab)
    assert model(ids(2, 1), cache).shape == (2, 1, vocab)
    assert model(ids(2, 3), cache).shape == (2, 3, vocab)
    cache = KVCache(model.config, 2, 4096, length=4095)
    assert model(ids(2, 1), cache).shape == (2, 1, vocab)
    assert cache.length == 4096


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
@pytest.mark.parametrize("model_id", bundled_ids())
def test_training(model_id, precision):
    config = four_layers(model_id)
    mtp = bool(config.get("num_nextn_predict_layers"))
    model = build(config, precision=precision, training=True, mtp=mtp)
    results = model(ids(2, 50), next_ids_BS=ids(2, 50) if mtp else None)
    for logits in results if mtp else (results,):
        assert logits.shape == (2, 50, config["vocab_size"])
        logits.float().mean().backward(retain_graph=True)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.shape == parameter.shape, name
            assert parameter.grad.dtype == parameter.dtype, name


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_other_dtypes(precision):
    model = build(four_layers("deepseek-ai/DeepSeek-V3"), precision=precision, training=True)
    model(ids(1, 16)).float().mean().backward()
    assert model.model.layers[3].mlp.experts.up_proj.grad is not None


def test_inference_models_require_no_gradient():
    assert not any(p.requires_grad for p in build(V3).parameters())
    assert not build(V3)(ids(1, 4)).requires_grad


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_nothing_depends_on_data(precision):
    """No op whose result has a shape that only the data knows."""
    model = build(four_layers("deepseek-ai/DeepSeek-V3"), precision=precision, training=True)
    with Ops() as ops:
        model(ids(2, 40)).float().mean().backward()
    forbidden = ("nonzero", "_local_scalar_dense", "bincount", "unique", "item", "masked_select")
    assert not [name for name in ops.names if any(word in name for word in forbidden)]


def test_experts_are_grouped_products():
    """Three of them a layer, and their count of ops does not depend on the number of experts."""
    lengths = []
    for experts in (8, 256):
        model = build({**V3, "n_routed_experts": experts})
        with Ops() as ops:
            model(ids(2, 40))
        assert ops.names.count("aten::_grouped_mm") == 3 * 2
        lengths.append(len(ops.names))
    assert lengths[0] == lengths[1]


def test_fp8_products():
    """Per MoE layer 5 attention and 3 shared products, 3 grouped; only gate and head in BF16."""
    model = build({**FP8, "num_hidden_layers": 2}, precision="fp8")
    with Ops() as ops:
        model(ids(2, 40))
    assert ops.names.count("aten::_scaled_mm") == 2 * (5 + 3)
    assert ops.names.count("deepseek::grouped_mm_fp8_block") == 3
    assert ops.names.count("aten::mm") == 1 + 1


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_decode_does_not_grow_with_context(precision):
    """But for attention itself, a step over 10 cached tokens and one over 1000 are the same."""
    model = build(FP8, precision=precision).prepare_decode()
    lengths = []
    for length in (10, 1000):
        with Ops() as ops:
            model(ids(2, 1), KVCache(model.config, 2, 2000, length=length))
        lengths.append(len(ops.names))
    assert lengths[0] == lengths[1]


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_fake_tensors_with_symbolic_batch_and_sequence(precision):
    """One trace for every batch and length: nothing in the model asks for a number."""
    env, real = ShapeEnv(), torch.zeros(3, 10, dtype=torch.long)
    with FakeTensorMode(shape_env=env) as mode:
        model = build(V3, precision=precision, device="cpu", training=True)
        dynamic = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC] * 2)
        tokens = mode.from_tensor(real, symbolic_context=dynamic)
        logits = model(tokens)
        logits.float().mean().backward()
    assert [str(size) for size in logits.shape] == [*map(str, tokens.shape), "96"]
    assert not isinstance(logits.shape[0], int)
    assert not env.guards
