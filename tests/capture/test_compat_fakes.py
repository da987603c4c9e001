"""What is relied on of torch's fake tensors and symbolic sizes (`compat_fakes`)."""

import pytest
import torch
from torch import nn

from tracer.capture import compat, compat_fakes


def test_a_symbolic_size_is_two_or_more_and_any_size():
    frozen = []
    mode, env = compat_fakes.symbolic_mode(lambda symbol, value: frozen.append((symbol, value)))
    size = compat_fakes.symbolic_size(env, "S", 5)
    assert type(size) is torch.SymInt
    with mode:
        x = torch.empty(size, 3, device="meta")
        assert compat.is_fake(x)
        assert type(x.shape[0]) is torch.SymInt
        assert (x + 1).shape[1] == 3
        assert not env.guards
        assert size > 1  # known, so no guard
        assert not env.guards
        assert size > 4
        assert [str(type(g.expr).__name__) for g in env.guards] == ["StrictGreaterThan"]
        assert not frozen
        assert int(size) == 5
    assert frozen[0][1] == 5


def test_a_symbol_is_not_fixed_if_the_hook_raises():
    def refuse(symbol, value):
        raise KeyError(value)

    _, env = compat_fakes.symbolic_mode(refuse)
    size = compat_fakes.symbolic_size(env, "S", 5)
    with pytest.raises(KeyError), compat_fakes.quiet_fake_tensors():
        int(size)
    assert len(size.node.expr.free_symbols) == 1


def test_symbols_of_equal_samples_are_two():
    _, env = compat_fakes.symbolic_mode(lambda symbol, value: None)
    one, other = compat_fakes.symbolic_size(env, "B", 8), compat_fakes.symbolic_size(env, "S", 8)
    assert one.node.expr != other.node.expr


def test_a_fake_of_a_meta_tensor_shares_its_storage():
    mode, _ = compat_fakes.symbolic_mode(lambda symbol, value: None)
    for device in ("meta", "cpu"):
        x = nn.Parameter(torch.ones(3, 4, device=device))
        fake = compat_fakes.fake_of(mode, x)
        assert compat.is_fake(fake)
        assert fake.device == x.device
        assert fake.stride() == x.stride()
        assert fake.is_leaf
        with mode:
            key = compat.storage_key(fake[1:].untyped_storage())
            assert key == compat.storage_key(fake.untyped_storage())
        same = compat.storage_key(x.untyped_storage()) == key
        assert same == (device == "meta")


def test_a_fake_is_made_over_a_storage_and_leaves_no_guard():
    mode, env = compat_fakes.symbolic_mode(lambda symbol, value: None)
    b = compat_fakes.symbolic_size(env, "B", 8)
    with mode:
        of = torch.empty(b, 4, device="meta")
        view = compat_fakes.fake_over(mode, of, None, (b, 2), (4, 1), 2, of.dtype, of.device)
        own = compat_fakes.fake_over(mode, None, b * 4, (b, 4), (4, 1), 0, of.dtype, of.device)
        keys = [compat.storage_key(t.untyped_storage()) for t in (of, view, own)]
        assert keys[0] == keys[1] != keys[2]
        assert (view.shape, view.stride(), view.storage_offset()) == ((b, 2), (4, 1), 2)
        assert str(own.untyped_storage().nbytes()) == str(of.untyped_storage().nbytes())
        assert all(
            compat_fakes.is_plain_fake(t) and compat_fakes.has_symbols(t) for t in (of, view, own)
        )
        assert not compat_fakes.is_plain_fake(torch.tensor(1.0))  # its value is known
    assert not env.guards


def test_the_meta_tensor_under_a_fake():
    mode, _ = compat_fakes.symbolic_mode(lambda symbol, value: None)
    with mode:
        fake = torch.empty(3, 4, device="meta").t()
    plain = compat_fakes.meta_of(fake)
    assert type(plain) is torch.Tensor and not compat_fakes.has_symbols(plain)
    assert (plain.shape, plain.stride(), plain.dtype) == ((4, 3), (1, 4), torch.float32)
    keys = {compat.storage_key(t.untyped_storage()) for t in (plain, fake)}
    assert len(keys) == 1
