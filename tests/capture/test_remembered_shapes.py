"""Results from memory have the form that the op gives, memory of their own, and nothing else's."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tracer.capture import Capture, remembered
from tracer.capture.adamw import MasterAdamW

aten = torch.ops.aten


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


CASES = [
    (aten.clamp.default, (meta(3, 4), -1.0, 2.0), {}),
    (aten.add.Tensor, (meta(3, 1), meta(4, dtype=torch.bfloat16)), {"alpha": 2}),
    (aten.mul.Tensor, (meta(2, 3).t(), meta(3, 2)), {}),
    (aten.mm.default, (meta(3, 4), meta(4, 5)), {}),
    (aten.cat.default, ([meta(2, 3), meta(4, 3)],), {}),
    (aten.sum.dim_IntList, (meta(2, 3, 4), [1], True), {"dtype": torch.float64}),
    (aten._to_copy.default, (meta(2, 3).t(),), {"dtype": torch.float8_e4m3fn}),
    (aten.clone.default, (meta(1, 4).expand(3, 4),), {}),
    (aten.max.dim, (meta(3, 5), 1), {}),
    (aten._foreach_sqrt.default, ([meta(3), meta(4)],), {}),
    (aten._foreach_sqrt.default, ([meta(3)],), {}),
    (aten._foreach_sqrt.default, ([meta(4), meta(3), meta(4)],), {}),  # alike ones run once
    (aten._foreach_norm.Scalar, ([meta(4), meta(4)],), {}),
    (aten._foreach_mul.List,
     ([meta(3), meta(3), meta(3)], [meta(2, 3), meta(3), meta(3, dtype=torch.float64)]), {}),
    (aten.arange.start, (0, 7), {"device": torch.device("meta"), "pin_memory": False}),
]  # fmt: skip


def forms(out):
    if isinstance(out, torch.Tensor):
        storage = out.untyped_storage()
        assert out.is_meta and out.storage_offset() == 0 and not out.requires_grad
        return out.shape, out.stride(), out.dtype, storage.nbytes()
    return [forms(t) for t in out]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case[0]))
def test_a_result_from_memory_is_the_ops_own(case):
    func, args, kwargs = case
    run = remembered.runner(func)
    assert run is not func
    before = remembered._outcome.cache_info()
    first, second = run(*args, **kwargs), run(*args, **kwargs)
    assert forms(first) == forms(second) == forms(func(*args, **kwargs))
    assert remembered._outcome.cache_info().hits > before.hits
    tensors = [t for out in (first, second) for t in ([out] if torch.is_tensor(out) else out)]
    assert len({t.untyped_storage()._cdata for t in tensors}) == len(tensors)


def test_numbers_of_different_types_make_different_results():
    run, x = remembered.runner(aten.add.Tensor), meta(3, dtype=torch.int64)
    add = remembered.runner(aten.add.Scalar)
    assert run(x, x).dtype == torch.int64
    assert [add(x, n).dtype for n in (1, 1.0, True)] == [torch.int64, torch.float32, torch.int64]


def test_the_default_dtype_is_part_of_what_is_remembered():
    add, x = remembered.runner(aten.add.Scalar), meta(3, dtype=torch.int64)
    assert add(x, 0.5).dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert add(x, 0.5).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "func",
    [aten.view.default, aten.add_.Tensor, aten.detach.default, aten.rand_like.default,
     aten.nonzero.default, torch.ops._c10d_functional.wait_tensor.default],
)  # fmt: skip
def test_views_writes_draws_and_collectives_always_run(func):
    assert remembered.runner(func) is func


def test_a_view_that_its_schema_hides_stays_a_view():
    x = meta(2, 6)
    y = remembered.runner(aten._unsafe_view.default)(x, [3, 4])
    assert y.untyped_storage()._cdata == x.untyped_storage()._cdata


def test_tensors_with_data_run_as_they_are():
    x = torch.tensor([1.0, 4.0])
    assert remembered.runner(aten.sqrt.default)(x).tolist() == [1.0, 2.0]


def updated(model):
    """A step of AdamW on lists, as it is recorded."""
    update = MasterAdamW(model.parameters())
    with Capture(model) as capture:
        update.step()
    return capture.trace


def test_an_optimizer_on_lists_is_recorded_in_full_and_does_not_run():
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4)).to("meta").bfloat16()
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    found = updated(model)
    with FlopCounterMode(display=False):
        plain = updated(model)
    assert found.ops == plain.ops and found.storages == plain.storages
    ran = []
    run = remembered.runner(aten._foreach_addcdiv_.Scalar)
    lists = [[meta(3), meta(4)] for _ in range(3)]
    assert run.func(lambda *args: ran.append(args), *lists, 0.5) is None and not ran
    for other in ([meta(3), meta(5)], [meta(3)], [meta(3), torch.ones(4)], [0.5]):
        run.func(lambda *args: ran.append(args), lists[0], other, lists[2], 0.5)
    assert len(ran) == 4  # what does not fit, or has data, is the op's own to judge


def test_lists_that_do_not_fit_are_refused_every_time():
    run = remembered.runner(aten._foreach_add_.List)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            run([meta(3)], [meta(4)])
        with pytest.raises(RuntimeError):
            run([meta(3, dtype=torch.int64)], [meta(3)])


def trained(model):
    for parameter in model.parameters():
        parameter.grad = None
    with Capture(model) as capture:
        model(meta(5, 8)).square().mean().backward()
    return capture.trace


def test_a_capture_that_remembers_records_the_same_trace():
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 4))
    model.to("meta")
    before = remembered._outcome.cache_info()
    with FlopCounterMode(display=False) as counter:  # below the capture: every op has to run
        plain = trained(model)
    assert remembered._outcome.cache_info() == before
    # 5 rows through two linears, forward and two products back, the first without its input's.
    assert counter.get_total_flops() == 2 * 5 * (2 * 8 * 16 + 3 * 16 * 4)
    first, second = trained(model), trained(model)
    assert remembered._outcome.cache_info().hits > before.hits
    assert plain.ops == first.ops == second.ops
    assert plain.storages == first.storages == second.storages
    assert plain.calls == second.calls


def test_a_mode_inside_of_the_capture_sees_every_op():
    model = nn.Linear(8, 16, device="meta")
    for _ in range(2):
        with Capture(model), FlopCounterMode(display=False) as counter:
            model(meta(5, 8))
        assert counter.get_total_flops() == 2 * 5 * 8 * 16
