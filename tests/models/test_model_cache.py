"""The two forms of attention agree: prefill and absorbed decode against one full forward."""

import pytest
import torch
from small_configs import V2_LITE, V3

from tracer.models import KVCache, build

# FP32 rounding (6e-8) through 3 layers with sums in another order: the two forms multiply the
# same numbers with other brackets.
TOLERANCE = 1e-4


def model_and_ids(config, **kwargs):
    model = build(config, precision="fp32", device="cpu", **kwargs).init_weights(seed=0)
    ids = torch.randint(
        0, config["vocab_size"], (2, 20), generator=torch.Generator().manual_seed(1)
    )
    return model, ids


def error(got, want):
    return ((got - want).abs().max() / want.abs().max()).item()


@pytest.mark.parametrize("config", [V3, V2_LITE], ids=["v3", "v2-lite"])
@pytest.mark.parametrize(
    "chunks", [[14, 1, 1, 1, 1, 1, 1], [1] * 20, [10, 10], [7, 1, 8, 4]], ids=str
)
def test_any_chunks_equal_the_full_forward(config, chunks):
    model, ids = model_and_ids(config)
    cache = KVCache(model.config, 2, 20, torch.float32, "cpu")
    with torch.no_grad():
        want = model(ids)
        got = torch.cat([model(part, cache) for part in ids.split(chunks, dim=1)], dim=1)
    assert cache.length == 20
    assert error(got, want) < TOLERANCE


def test_last_logits():
    model, ids = model_and_ids(V3)
    assert error(model(ids, logits="last"), model(ids)[:, -1:]) < TOLERANCE
    with pytest.raises(ValueError, match=r"^logits is 'first', not 'all' or 'last'$"):
        model(ids, logits="first")


def test_a_shorter_list_of_layers_keeps_its_slots():
    """A layer finds its cache by its own index, whatever list it stands in."""
    model, ids = model_and_ids(V3)
    model.model.layers = torch.nn.ModuleList([model.model.layers[0], model.model.layers[2]])
    cache = KVCache(model.config, 2, 20, torch.float32, "cpu")
    cache.latents[1].fill_(float("nan"))
    with torch.no_grad():
        want = model(ids)
        model(ids[:, :19], cache)
        assert error(model(ids[:, 19:], cache), want[:, 19:]) < TOLERANCE
    assert cache.latents[1].isnan().all()


def test_capacity():
    model, ids = model_and_ids(V3)
    cache = KVCache(model.config, 2, 19, torch.float32, "cpu")
    with pytest.raises(ValueError, match=r"^KV cache of capacity 19 cannot hold 20 tokens$"):
        model(ids, cache)
    assert cache.length == 0
    with pytest.raises(ValueError, match=r"^KV cache length 20 is beyond its capacity 19$"):
        KVCache(model.config, 2, 19, length=20)


def test_no_slot():
    model, ids = model_and_ids(V3)
    with pytest.raises(ValueError, match=r"^KV cache has no slot for layer 0$"):
        model(ids, KVCache(model.config, 2, 20, torch.float32, "cpu", layers=[3]))


def test_decode_makes_no_copy_of_the_cache():
    """The key is the cache and the value its first 512 columns: same storage, nothing expanded."""
    seen = []
    real = torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, value, **kwargs):
        seen.append((query, key, value, kwargs))
        return real(query, key, value, **kwargs)

    model, ids = model_and_ids(V3)
    cache = KVCache(model.config, 2, 20, torch.float32, "cpu")
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        model(ids[:, :19], cache)
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
        model(ids[:, 19:], cache)
    assert len(seen) == 3
    for layer, (query, key, value, kwargs) in enumerate(seen):
        storage = cache.latents[layer].untyped_storage().data_ptr()
        assert key.untyped_storage().data_ptr() == value.untyped_storage().data_ptr() == storage
        assert query.shape == (2, 1, 4, 32 + 8)  # the four heads are rows: they share the key
        assert key.shape == (2, 1, 20, 32 + 8)
        assert value.shape == (2, 1, 20, 32)
        assert kwargs["attn_mask"] is None


def test_absorbed_weights_are_views():
    model, _ = model_and_ids(V3)
    model.prepare_decode()
    attention = model.model.layers[0].self_attn
    assert not [name for name, _ in model.named_buffers() if "w_u" in name]
    for weight in attention._absorbed_weights():
        assert weight.data_ptr() >= attention.kv_b_proj.weight.data_ptr()
        assert weight._base is not None


def test_mtp_is_what_the_paper_says():
    """Section 2.2, written out: h' = M [norm(h); norm(emb(t+1))], one layer, shared head."""
    model, ids = model_and_ids(V3, mtp=True)
    layer, next_ids = model.model.layers[3], ids.roll(-1, dims=1)
    with torch.no_grad():
        _, got = model(ids, next_ids_BS=next_ids)
        hidden = model.model(ids)
        embedded = model.model.embed_tokens(next_ids.flatten())
        x = layer.eh_proj(torch.cat((layer.enorm(embedded), layer.hnorm(hidden)), dim=-1))
        step = model.model.step(2, 20, None)
        x = x + layer.self_attn(layer.input_layernorm(x), step)
        x = x + layer.mlp(layer.post_attention_layernorm(x))
        want = model.lm_head(layer.shared_head.norm(x)).view(2, 20, -1)
    assert torch.equal(got, want)


def test_mtp_leaves_the_main_model_alone():
    with_mtp, ids = model_and_ids(V3, mtp=True)
    without, _ = model_and_ids(V3)
    state = with_mtp.state_dict()
    without.load_state_dict({k: v for k, v in state.items() if "layers.3." not in k})
    assert torch.equal(with_mtp(ids), without(ids))


def test_mtp_drafts_with_its_own_cache():
    model, ids = model_and_ids(V3, mtp=True)
    next_ids = ids.roll(-1, dims=1)
    cache = KVCache(model.config, 2, 20, torch.float32, "cpu", layers=[3])
    with torch.no_grad():
        hidden = model.model(ids)
        want = model.mtp_logits(hidden, next_ids)
        by_sequence = hidden.view(2, 20, -1)
        got = [
            model.mtp_logits(h.flatten(0, 1), part, cache)
            for h, part in zip(
                by_sequence.split([18, 1, 1], 1), next_ids.split([18, 1, 1], 1), strict=True
            )
        ]
    assert error(torch.cat(got, dim=1), want) < TOLERANCE


def test_mtp_must_be_built():
    model, ids = model_and_ids(V3)
    with pytest.raises(ValueError, match=r"^no MTP layer 0: the model was built with 0$"):
        model(ids, next_ids_BS=ids)
