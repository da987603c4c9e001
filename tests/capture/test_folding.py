"""A few layers stand for all: same totals as the full trace, and the model as it was."""

import itertools

import pytest
import torch
from torch import nn

from tracer.capture import Capture
from tracer.capture.fold import folded
from tracer.cost import price


class Layer(nn.Module):
    def __init__(self, width=8, wide=16, layer_idx=None):
        super().__init__()
        self.layer_idx = layer_idx
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, wide), nn.Linear(wide, width)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Stack(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.embed = nn.Linear(8, 8)
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def measure(model, fold, train=True, x=None):
    x = torch.zeros(2, 3, 8, device="meta") if x is None else x
    model.zero_grad(set_to_none=True)
    with torch.set_grad_enabled(train), Capture(model, fold=fold) as capture:
        out = model(x).sum()
        if train:
            out.backward()
    return capture.trace


def totals(trace):
    """Per phase and execution: the whole cost; and the ops of the whole model, by name."""
    costs = {
        (execution, phase): price(trace, execution=execution).total(phase)
        for execution in ("naive", "efficient")
        for phase in ("forward", "backward")
    }
    ops = {}
    for op in trace.ops:
        ops[op.name, op.phase] = ops.get((op.name, op.phase), 0) + op.times
    return costs, ops


def assert_folding_changes_nothing(model, layers, x=None):
    for train in (True, False):
        full = measure(model, 0, train, x)
        short = measure(model, layers, train, x)
        costs, ops = totals(full)
        short_costs, short_ops = totals(short)
        assert short_ops == ops
        assert short_costs == costs
    return short


def test_a_uniform_stack_is_traced_three_times():
    model = Stack([Layer() for _ in range(10)]).to("meta")
    trace = assert_folding_changes_nothing(model, 10)
    (fold,) = trace.folds
    assert (fold.module, fold.layers) == ("layers.1", 8)
    assert fold.members == tuple(f"layers.{i}" for i in range(1, 9))
    assert {trace.module_of(op).split(".")[1] for op in trace.ops if "layers" in
            trace.module_of(op)} == {"0", "1", "9"}  # fmt: skip


def test_two_kinds_each_fold():
    model = Stack([Layer(wide=32 if i < 3 else 16) for i in range(12)]).to("meta")
    trace = assert_folding_changes_nothing(model, 12)
    assert [(f.module, f.layers) for f in trace.folds] == [("layers.4", 7)]


@pytest.mark.parametrize("pattern", ["ababababab", "aabaabaabaab", "aaaabbbbbaaaa"])
def test_alternating_kinds(pattern):
    model = Stack([Layer(wide=32 if c == "a" else 16) for c in pattern]).to("meta")
    assert_folding_changes_nothing(model, len(pattern))


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_short_stacks(layers):
    model = Stack([Layer() for _ in range(layers)]).to("meta")
    trace = assert_folding_changes_nothing(model, layers)
    assert [f.layers for f in trace.folds] == ([2] if layers == 4 else [])


def test_the_position_of_a_layer_is_no_difference():
    model = Stack([Layer(layer_idx=i) for i in range(8)]).to("meta")
    trace = assert_folding_changes_nothing(model, 8)
    assert [f.layers for f in trace.folds] == [6]


def test_lists_of_another_length_stay():
    model = Stack([Layer() for _ in range(8)]).to("meta")
    assert measure(model, 7).folds == ()
    assert measure(model, 0).folds == ()

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = (
                Stack([Layer() for _ in range(6)]),
                Stack([Layer() for _ in range(8)]),
            )

        def forward(self, x):
            return self.encoder(x), self.decoder(x)

    with Capture(Two().to("meta"), fold=8) as capture:
        pass
    assert [f.module for f in capture.trace.folds] == ["decoder.layers.1"]


@pytest.mark.parametrize("train", [True, False])
def test_the_model_gets_its_layers_back(train):
    model = Stack([Layer() for _ in range(8)]).to("meta")
    before, entries = model.layers, list(model.layers)
    keys = list(model.state_dict())
    measure(model, 8, train)
    assert model.layers is before
    assert list(model.layers) == entries
    assert list(model.state_dict()) == keys


def test_the_model_gets_its_layers_back_after_an_exception():
    model = Stack([Layer() for _ in range(8)]).to("meta")
    before = model.layers
    with pytest.raises(ZeroDivisionError), Capture(model, fold=8):
        assert len(model.layers) == 3
        raise ZeroDivisionError
    assert model.layers is before
    assert len(model.layers) == 8


def test_a_slice_of_the_layers_works():
    class Sliced(Stack):
        def forward(self, x):
            for layer in self.layers[: len(self.layers)]:
                x = layer(x)
            return x

    assert_folding_changes_nothing(Sliced([Layer() for _ in range(6)]).to("meta"), 6)


def test_enumerate_works():
    class Numbered(Stack):
        def forward(self, x):
            for _, layer in enumerate(self.layers):
                x = layer(x)
            return x

    assert_folding_changes_nothing(Numbered([Layer() for _ in range(6)]).to("meta"), 6)


def test_work_between_the_layers_counts_for_every_layer():
    """The residual is added by the loop, outside of any layer."""

    class Residual(Stack):
        def forward(self, x):
            for layer in self.layers:
                x = x + 0.5 * layer(x)
            return x

    assert_folding_changes_nothing(Residual([Layer() for _ in range(9)]).to("meta"), 9)


def test_folding_twice_one_inside_the_other_restores_both():
    model = Stack([Layer() for _ in range(6)]).to("meta")
    before = model.layers
    with folded(model, 6), folded(model, 6):
        pass
    assert model.layers is before


# -- layers that look alike and are not ------------------------------------------------------------


def conv_layers():
    """Same weights, other dilation: other output lengths, as in WaveNet."""
    return nn.Sequential(*[nn.Conv1d(8, 8, 3, dilation=d, padding=d) for d in (1, 1, 2, 4, 8, 1)])


class Repeats(nn.Module):
    def __init__(self, setting):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.setting = setting

    @property
    def times(self):
        value = self.setting
        while not isinstance(value, int):
            value = next(iter(value.values())) if isinstance(value, dict) else value[0]
        return value

    def forward(self, x):
        for _ in range(self.times):
            x = self.linear(x)
        return x


@pytest.mark.parametrize(
    "wrap",
    [lambda n: n, lambda n: (n,), lambda n: [n], lambda n: {"n": n}, lambda n: ((n,), 0)],
    ids=["int", "tuple", "list", "dict", "nested"],
)
def test_settings_of_any_plain_type_tell_layers_apart(wrap):
    model = Stack([Repeats(wrap(n)) for n in (1, 1, 5, 1, 7, 1)]).to("meta")
    assert_folding_changes_nothing(model, 6)


def test_private_settings_tell_layers_apart():
    class Private(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.linear = nn.Linear(8, 8)
            self._repeats = n

        def forward(self, x):
            for _ in range(self._repeats):
                x = self.linear(x)
            return x

    model = Stack([Private(n) for n in (1, 1, 5, 1, 7, 1)]).to("meta")
    assert_folding_changes_nothing(model, 6)


def test_dilations_tell_layers_apart():
    layers = [nn.Conv1d(8, 8, 3, dilation=d) for d in (1, 1, 2, 4, 8, 1)]

    class Wave(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(layers)

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    assert_folding_changes_nothing(Wave().to("meta"), 6, torch.zeros(2, 8, 100, device="meta"))


def test_functions_tell_layers_apart():
    class Act(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.linear, self.function = nn.Linear(8, 8), function

        def forward(self, x):
            return self.function(self.linear(x))

    functions = [torch.relu, torch.relu, torch.tanh, nn.functional.gelu, torch.sin, torch.relu]
    model = Stack([Act(f) for f in functions]).to("meta")
    assert_folding_changes_nothing(model, 6)


def test_frozen_layers_are_another_kind():
    layers = [Layer() for _ in range(9)]
    for layer in layers[2:6]:
        layer.requires_grad_(False)
    assert_folding_changes_nothing(Stack(layers).to("meta"), 9)


def test_hooks_tell_layers_apart():
    layers = [Layer() for _ in range(6)]
    layers[2].register_forward_hook(lambda module, args, out: out @ out.transpose(1, 2) @ out)
    assert_folding_changes_nothing(Stack(layers).to("meta"), 6)


def test_one_layer_used_many_times():
    """ALBERT: the list holds the same module over and over."""
    shared = Layer()
    assert_folding_changes_nothing(Stack([shared] * 6).to("meta"), 6)


def test_groups_of_shared_layers():
    kinds = itertools.cycle([Layer(), Layer()])
    assert_folding_changes_nothing(Stack([next(kinds) for _ in range(8)]).to("meta"), 8)


def test_a_module_shared_by_all_layers():
    """Zamba: every layer calls one shared block, whose path is under the first layer."""
    shared = nn.Linear(8, 8)

    class Shares(nn.Module):
        def __init__(self):
            super().__init__()
            self.own, self.shared = nn.Linear(8, 8), shared

        def forward(self, x):
            return self.shared(torch.relu(self.own(x)))

    assert_folding_changes_nothing(Stack([Shares() for _ in range(7)]).to("meta"), 7)
