"""Optimizers: fused steps against the update rule run with counting numbers, foreach against loops.

The rules are those of torch's documentation of each class.
"""

import math

import pytest
import torch
from op_records import Counted, ledger_of, moved, record, ref, work

aten = torch.ops.aten
SHAPES = [(4, 3), (5,)]
ELEMENTS = 4 * 3 + 5


def run(rule, **options):
    """Operations of one element's update."""
    Counted.reset()
    rule(**options)
    return Counted.total()


def adam(decoupled, weight_decay=0.0, amsgrad=False, maximize=False, scaled=False):
    p, g, m, v, biggest = (Counted() for _ in range(5))
    beta1, beta2, eps, lr, correction = 0.9, 0.999, 1e-8, 1e-3, 0.1
    if scaled:
        g = g / 1024
    if maximize:
        g = -g
    if weight_decay and decoupled:
        p = p * (1 - lr * weight_decay)  # the factor is the same for all elements
    elif weight_decay:
        g = g + p * weight_decay
    m = m + (g - m) * (1 - beta1)
    v = v * beta2 + (g * g) * (1 - beta2)
    if amsgrad:
        v = biggest.larger(v)
    denominator = v.sqrt() / math.sqrt(correction) + eps
    return p - (m / denominator) * (lr / correction)


def sgd(weight_decay=0.0, momentum=0.0, nesterov=False, maximize=False, first=False):
    p, g, buffer = Counted(), Counted(), Counted()
    if maximize:
        g = -g
    if weight_decay:
        g = g + p * weight_decay
    if momentum:
        buffer = g if first else buffer * momentum + g * (1 - 0.1)
        g = g + buffer * momentum if nesterov else buffer
    return p - g * 0.1


def adagrad(weight_decay=0.0, maximize=False):
    p, g, total = Counted(), Counted(), Counted()
    if maximize:
        g = -g
    if weight_decay:
        g = g + p * weight_decay
    total = total + g * g
    return p - (g / (total.sqrt() + 1e-10)) * 0.1


def lists(*names):
    return {name: tuple(ref(*shape) for shape in SHAPES) for name in names}


ADAM_LISTS = ("self", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs")


def adam_record(name, amsgrad=False, **options):
    given = lists(*ADAM_LISTS) | {"amsgrad": amsgrad, **options}
    if not amsgrad:
        given["max_exp_avg_sqs"] = ()
    return record(getattr(aten, name).default, state_steps=tuple(ref() for _ in SHAPES), **given)


@pytest.mark.parametrize("name", ["_fused_adam_", "_fused_adamw_"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("maximize", [False, True])
def test_adam_by_its_rule(name, weight_decay, amsgrad, maximize):
    options = {"weight_decay": weight_decay, "amsgrad": amsgrad, "maximize": maximize}
    steps = run(adam, decoupled=name == "_fused_adamw_", **options)
    assert work(adam_record(name, **options)).vector == steps * ELEMENTS


def test_a_gradient_scaler_divides_and_writes_back():
    plain = adam_record("_fused_adamw_")
    scaled = adam_record("_fused_adamw_", grad_scale=ref())
    assert work(scaled).vector == run(adam, decoupled=True, scaled=True) * ELEMENTS
    nbytes = 4 * ELEMENTS
    assert sum(item.nbytes for item in moved(plain).writes) == 3 * nbytes  # parameter, two moments
    assert sum(item.nbytes for item in moved(scaled).writes) == 4 * nbytes
    assert sum(item.nbytes for item in moved(plain).reads) == 4 * nbytes + 2 * 4  # and two steps


def test_amsgrad_keeps_another_state():
    op = adam_record("_fused_adam_", amsgrad=True)
    assert sum(item.nbytes for item in moved(op).reads) == 5 * 4 * ELEMENTS + 2 * 4
    assert sum(item.nbytes for item in moved(op).writes) == 4 * 4 * ELEMENTS


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.1},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        {"momentum": 0.9, "is_first_step": True},
        {"maximize": True},
    ],
)
def test_sgd_by_its_rule(options):
    first = options.get("is_first_step", False)
    rule = {key: value for key, value in options.items() if key != "is_first_step"}
    given = lists("self", "grads") | {"momentum_buffer_list": ()}
    if options.get("momentum"):
        given |= lists("momentum_buffer_list")
    op = record(aten._fused_sgd_.default, **given, **options)
    assert work(op).vector == run(sgd, first=first, **rule) * ELEMENTS
    buffers = bool(options.get("momentum"))
    assert sum(i.nbytes for i in moved(op).reads) == 4 * ELEMENTS * (2 + (buffers and not first))
    assert sum(i.nbytes for i in moved(op).writes) == 4 * ELEMENTS * (1 + buffers)


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"maximize": True}])
def test_adagrad_by_its_rule(options):
    given = lists("self", "grads", "state_sums")
    op = record(aten._fused_adagrad_.default, **given, **options, state_steps=(ref(), ref()))
    assert work(op).vector == run(adagrad, **options) * ELEMENTS


def test_unscaling_checks_and_multiplies():
    op = record(aten._amp_foreach_non_finite_check_and_unscale_.default, **lists("self"))
    assert work(op).vector == 2 * ELEMENTS


OPTIMIZERS = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": lambda p, **o: torch.optim.SGD(p, momentum=0.9, weight_decay=0.1, **o),
    "adagrad": torch.optim.Adagrad,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_real_fused_step(name):
    """The second step of a real optimizer, its states in place."""
    parameters = [torch.randn(*shape, requires_grad=True) for shape in SHAPES]
    optimizer = OPTIMIZERS[name](parameters, fused=True)
    for _ in range(2):
        for p in parameters:
            p.grad = torch.randn_like(p)
        ledger = ledger_of(optimizer.step)
    fused = [k for k in ledger.kernels if "fused" in k.name]
    assert len(fused) == 1
    rules = {
        "adam": lambda: run(adam, decoupled=False),
        "adamw": lambda: run(adam, decoupled=True, weight_decay=0.01),
        "sgd": lambda: run(sgd, momentum=0.9, weight_decay=0.1),
        "adagrad": lambda: run(adagrad),
    }
    assert fused[0].cost.vector_flops == rules[name]() * ELEMENTS
    assert {part.confidence for part in ledger.parts()} == {"exact"}


FOREACH = {
    "Adadelta": torch.optim.Adadelta,
    "Adamax": torch.optim.Adamax,
    "NAdam": torch.optim.NAdam,
    "RAdam": torch.optim.RAdam,
    "RMSprop": torch.optim.RMSprop,
    "Rprop": torch.optim.Rprop,
    "ASGD": torch.optim.ASGD,
    "AdamW": torch.optim.AdamW,
    "SGD": torch.optim.SGD,
}


@pytest.mark.parametrize("name", FOREACH)
@pytest.mark.parametrize("foreach", [False, True])
def test_every_optimizer_is_counted(name, foreach):
    parameters = [torch.randn(*shape, requires_grad=True) for shape in SHAPES]
    optimizer = FOREACH[name](parameters, foreach=foreach)
    for _ in range(2):
        for p in parameters:
            p.grad = torch.randn_like(p)
        ledger = ledger_of(optimizer.step)
    assert ledger.total().vector_flops >= 2 * ELEMENTS
    # Rprop writes where signs changed: how often is data.
    masked = {"estimated"} if name == "Rprop" else set()
    assert {part.confidence for part in ledger.parts()} == {"exact"} | masked


def test_adafactor_and_muon():
    matrices = [torch.randn(8, 6, requires_grad=True)]
    for optimizer in (torch.optim.Adafactor(matrices), torch.optim.Muon(matrices)):
        matrices[0].grad = torch.randn_like(matrices[0])
        assert ledger_of(optimizer.step).total().vector_flops > 0
    # Muon's Newton-Schulz steps are products: for each of 5, X·Xᵀ, A·A and B·X with a = 6, n = 8.
    products = 5 * (2 * 6 * 8 * 6 + 2 * 6 * 6 * 6 + 2 * 6 * 6 * 8)
    matrices[0].grad = torch.randn_like(matrices[0])
    assert ledger_of(torch.optim.Muon(matrices).step).total().total_flops == products


# -- foreach ---------------------------------------------------------------------------------------

UNARY = """abs acos asin atan ceil cos cosh erf erfc exp expm1 floor frac lgamma log log10 log1p
    log2 neg reciprocal round rsqrt sigmoid sign sin sinh sqrt tan tanh trunc""".split()
BINARY = "add sub mul div maximum minimum clamp_min clamp_max pow".split()
TERNARY = "addcmul addcdiv lerp".split()


def tensors():
    return [torch.rand(*shape) + 0.5 for shape in SHAPES]


def same_as_loop(foreach, single, *operands):
    """Vector FLOPs and bytes of the list op are those of the loop."""
    together = ledger_of(foreach, *operands).total()
    with_each = [
        ledger_of(single, *(o[i] if isinstance(o, list) else o for o in operands)).total()
        for i in range(len(SHAPES))
    ]
    assert together.vector_flops == sum(cost.vector_flops for cost in with_each)
    assert together.total_bytes == sum(cost.total_bytes for cost in with_each)


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("suffix", ["", "_"])
def test_foreach_unary_is_a_loop(name, suffix):
    single = getattr(torch.Tensor, name + suffix)
    same_as_loop(getattr(torch, f"_foreach_{name}{suffix}"), single, tensors())


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("suffix", ["", "_"])
@pytest.mark.parametrize("second", ["list", "scalar", "scalars"])
def test_foreach_binary_is_a_loop(name, suffix, second):
    other = {"list": tensors(), "scalar": 2.0, "scalars": [2.0, 3.0]}[second]
    in_place = suffix == "_"
    singles = {"maximum": "clamp_min", "minimum": "clamp_max"}  # which take a number too

    def single(x, y):
        function = getattr(torch.Tensor, singles.get(name, name) + suffix)
        return function(x, y)

    if in_place or name not in ("maximum", "minimum") or second != "list":
        same_as_loop(getattr(torch, f"_foreach_{name}{suffix}"), single, tensors(), other)
    else:
        same_as_loop(getattr(torch, f"_foreach_{name}"), getattr(torch, name), tensors(), other)


@pytest.mark.parametrize("name", TERNARY)
@pytest.mark.parametrize("suffix", ["", "_"])
def test_foreach_ternary_is_a_loop(name, suffix):
    last = tensors()
    foreach = getattr(torch, f"_foreach_{name}{suffix}")
    same_as_loop(foreach, getattr(torch.Tensor, name + suffix), tensors(), tensors(), last)


def test_foreach_reductions_are_loops():
    same_as_loop(torch._foreach_norm, torch.linalg.vector_norm, tensors())
    same_as_loop(torch._foreach_max, torch.max, tensors())


def test_foreach_copies_do_not_read_their_target():
    sources, targets = tensors(), tensors()
    total = ledger_of(torch._foreach_copy_, targets, sources).total()
    assert sum(total.read.values()) == sum(total.write.values()) == 4 * ELEMENTS
    zeroed = ledger_of(torch._foreach_zero_, targets).total()
    assert (sum(zeroed.read.values()), sum(zeroed.write.values())) == (0, 4 * ELEMENTS)


def test_clipping_by_norm():
    """Norms of each, the norm of the norms, one factor, and a multiply an element."""
    parameters = [torch.randn(*shape, requires_grad=True) for shape in SHAPES]
    for p in parameters:
        p.grad = torch.randn_like(p)
    ledger = ledger_of(torch.nn.utils.clip_grad_norm_, parameters, 1.0, foreach=True)
    by_op = {}
    for kernel in ledger.kernels:
        by_op[kernel.name] = by_op.get(kernel.name, 0) + kernel.cost.vector_flops
    assert by_op["_foreach_norm"] == 2 * ELEMENTS
    assert by_op["_foreach_mul_"] == ELEMENTS
