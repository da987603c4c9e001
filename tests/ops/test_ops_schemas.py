"""Every formula against its op's real schema: it can be called, and it reads the right slots."""

import inspect

import pytest
import torch
from op_records import record

from tracer.capture.compat import is_composite
from tracer.cost import registry
from tracer.cost.formulas.pointwise import FLOPS_PER_ELEMENT

OWN = (
    "out"  # the keyword that holds the results; a schema's argument `out` is `output` in a formula
)


def priced_overloads():
    """(key, formula, overload) for every overload that can reach a formula."""
    keys = dict(registry.items())
    for key, formula in keys.items():
        namespace, name, *overload = key.split(".")
        if namespace != "aten":
            continue
        packet = getattr(torch.ops.aten, name)
        for each in packet.overloads():
            if overload and each != overload[0]:
                continue
            if not overload and f"{key}.{each}" in keys:
                continue  # the overload has a formula of its own
            yield key, formula, getattr(packet, each)


def written(argument):
    return argument.alias_info is not None and argument.alias_info.is_write


def dispatched(overload):
    """Known to the dispatcher, and with a kernel of its own."""
    try:
        torch._C._dispatch_has_kernel_for_dispatch_key(overload.name(), "CPU")
    except RuntimeError:  # TorchScript's own
        return False
    return not is_composite(overload)


CASES = [case for case in priced_overloads() if dispatched(case[2])]


def test_there_is_something_to_check():
    assert len(CASES) > 900
    assert len({key for key, *_ in CASES}) > 450


def test_every_formula_is_for_an_op_that_exists():
    for key, _ in registry.items():
        namespace, name, *overload = key.split(".")
        if namespace == "aten":
            assert hasattr(torch.ops.aten, name), key
            if overload:
                assert overload[0] in getattr(torch.ops.aten, name).overloads(), key


def test_every_formula_accepts_its_op():
    """With every argument given, and with only those that have no default."""
    failures = []
    for _, formula, overload in CASES:
        arguments = overload._schema.arguments
        positional = [a for a in arguments if not a.kwarg_only]
        keywords = [a for a in arguments if a.kwarg_only and not written(a)]
        signature = inspect.signature(formula.function)
        extra = {"env": None} if formula.wants_env else {}
        least = [a for a in positional if not a.has_default_value()]
        needed = [a for a in keywords if not a.has_default_value()]
        for args, kwargs in ((positional, keywords), (least, needed)):
            try:
                signature.bind(*args, **{a.name: a for a in kwargs}, out=(), **extra)
            except TypeError as error:
                failures.append(f"{overload}: {error}")
    assert not failures


def test_arguments_are_named_as_in_the_schema():
    """A positional parameter that a formula names holds what the schema calls by that name."""
    failures = []
    for _, formula, overload in CASES:
        names = [a.name for a in overload._schema.arguments if not a.kwarg_only]
        named = [
            p.name
            for p in inspect.signature(formula.function).parameters.values()
            if p.kind is p.POSITIONAL_OR_KEYWORD
        ]
        for position, (mine, theirs) in enumerate(zip(named, names, strict=False)):
            if mine != theirs and (theirs, mine) != (OWN, "output"):
                failures.append(f"{overload}: argument {position} is {theirs!r}, not {mine!r}")
    assert not failures


def test_keywords_exist_in_some_overload():
    known = {}
    for key, formula, overload in CASES:
        names = {a.name for a in overload._schema.arguments}
        known.setdefault((key, formula.function), set()).update(names)
    shared = {}
    for (_, function), names in known.items():
        shared.setdefault(function, set()).update(names)
    for function, names in shared.items():
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in (OWN, "env"):
                assert parameter.name in names, f"{function.__name__}: {parameter.name}"


def test_elementwise_names_are_ops():
    for name in FLOPS_PER_ELEMENT:
        packet = getattr(torch.ops.aten, name, None) or getattr(torch.ops.aten, f"{name}_")
        assert packet.overloads(), name


def test_a_record_puts_arguments_where_the_schema_has_them():
    """The helper that other tests stand on: cuDNN's padding comes before its stride."""
    op = record(torch.ops.aten.cudnn_convolution.default, padding=(1, 1), stride=(2, 2))
    assert op.args[2:4] == ((1, 1), (2, 2))


@pytest.mark.parametrize("key", ["aten.mm", "aten.convolution", "aten._cudnn_rnn", "aten.topk"])
def test_formulas_say_in_words_what_they_count(key):
    assert (dict(registry.items())[key].function.__doc__ or "").strip()


def test_no_formula_is_silent():
    silent = {key for key, formula in registry.items() if not formula.function.__doc__}
    assert {key for key in silent if key.startswith("aten.")} == set()
