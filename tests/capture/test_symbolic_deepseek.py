"""DeepSeek-V3 with sizes as symbols equals DeepSeek-V3 at numbers, wherever its conditions hold."""

import functools
import random

import pytest

from tracer.algebra.expression import value_at
from tracer.capture.program import load_program
from tracer.capture.store import load, save
from tracer.capture.workload import Workload, record, record_symbolic
from tracer.cost import EXECUTIONS, price
from tracer.predict.memory import memory

V3 = "deepseek-ai/DeepSeek-V3"
POINTS = {"prefill": 8, "decode": 8, "training": 2}  # scripts/bench_symbolic.py: 20
TILE = 128  # of FP8: training contracts over tokens, in tiles of so many


@functools.cache
def program(dtype, layers=61):
    return load_program(V3, dtype=dtype, layers=layers)


def work(phase, batch, tokens):
    return Workload(phase, batch, tokens, tokens, "none")


@functools.cache
def symbolic(phase, dtype, layers=61, fold=True):
    return record_symbolic(program(dtype, layers), work(phase, 8, 4096), fold=fold)


def points(phase, dtype):
    """Random sizes from a seed; some where S or L is a size of the model by coincidence."""
    if phase == "training":  # slow, and in FP8 of whole tiles
        return [(128, 129), (3, 512)] if dtype == "fp8" else [(2, 2), (7, 131)]
    draw = random.Random(f"{phase} {dtype}")
    found = [(2, 2), (128, 128), (3, 512), (5, 7168)]
    while len(found) < POINTS[phase]:
        found.append((draw.randint(2, 300), int(2 ** draw.uniform(1, 13))))
    return found


def figures(ledger):
    """Everything that is equal or is not."""
    total = ledger.total()
    held = memory(ledger)
    return {
        "vector": total.vector_flops,
        **{("flops", k): v for k, v in total.flops.items()},
        **{("recompute", k): v for k, v in total.recompute_flops.items()},
        **{("read", k): v for k, v in total.read.items()},
        **{("write", k): v for k, v in total.write.items()},
        **{("memory", k): getattr(held, k) for k in held.__dataclass_fields__},
    }


CASES = [(p, d) for p in POINTS for d in ("bf16", "fp8") if (p, d) != ("training", "fp8")]


@pytest.mark.parametrize(("phase", "dtype"), [*CASES, ("training", "fp8")])
def test_formulas_equal_the_concrete_trace(phase, dtype):
    """FLOPs by precision, vector FLOPs, bytes by role, memory; both executions; all 61 layers."""
    trace = symbolic(phase, dtype)
    ledgers = {e: figures(price(trace, execution=e)) for e in EXECUTIONS}
    tokens = "L" if phase == "decode" else "S"
    sampled = points(phase, dtype)
    assert len(sampled) == POINTS[phase]
    for batch, length in sampled:
        at = {"B": batch, tokens: length}
        assert trace.scope.violated(at) == []
        concrete = record(program(dtype), work(phase, batch, length))
        for execution, formulas in ledgers.items():
            numbers = figures(price(concrete, execution=execution))
            values = {key: value_at(value, at) for key, value in formulas.items()}
            assert {k: v for k, v in values.items() if v} == {k: v for k, v in numbers.items() if v}


@pytest.mark.parametrize(("phase", "dtype"), CASES)
def test_no_condition_but_the_range_of_the_symbols(phase, dtype):
    trace = symbolic(phase, dtype)
    for execution in EXECUTIONS:
        memory(price(trace, execution=execution))
    tokens = "L" if phase == "decode" else "S"
    assert trace.scope.conditions() == ["B >= 2", f"{tokens} >= 2"]


def test_fp8_training_wants_whole_tiles_of_tokens():
    """Its weight gradients contract over tokens in tiles of 128; anything else is padded."""
    trace = symbolic("training", "fp8")
    conditions = trace.scope.conditions()
    assert f"{TILE} divides B·S" in conditions
    assert len(conditions) <= 5
    assert trace.scope.violated({"B": 3, "S": 100})[0] == "128 divides B·S"


@pytest.mark.parametrize("phase", POINTS)
def test_folded_is_unfolded(phase):
    """12 layers, each traced, or three of a kind that stand for all: the same expressions."""
    folded = symbolic(phase, "bf16", layers=12)
    full = symbolic(phase, "bf16", layers=12, fold=False)
    assert len(folded.ops) < len(full.ops)
    for execution in EXECUTIONS:
        one, other = (figures(price(t, execution=execution)) for t in (folded, full))
        held = {key for key in one if key[0] == "memory"}
        assert {k: v for k, v in one.items() if k not in held} == {
            k: v for k, v in other.items() if k not in held
        }
        for at in ({"B": 2, "S": 2, "L": 2}, {"B": 7, "S": 1001, "L": 33}):
            for key in held:
                assert value_at(one[key], at) == value_at(other[key], at)


def test_a_file_gives_the_same_formulas(tmp_path):
    trace = symbolic("decode", "bf16")
    again = load(save(trace, tmp_path / "decode.json.gz"))
    assert figures(price(again)) == figures(price(trace))
    assert again.scope.conditions() == trace.scope.conditions()
    assert again.header == trace.header


def test_a_size_of_one_stays_one():
    trace = record_symbolic(program("bf16"), work("decode", 1, 4096))
    concrete = record(program("bf16"), work("decode", 1, 300))
    assert trace.scope.conditions() == ["L >= 2"]
    values = {k: value_at(v, {"L": 300}) for k, v in figures(price(trace)).items()}
    assert values == figures(price(concrete))
