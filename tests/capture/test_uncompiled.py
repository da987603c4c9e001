"""Torch's compiler stays away while a bundled model is traced, and is whole afterwards."""

import json
import subprocess
import sys

import torch
from torch._dynamo import config

from tracer.capture.uncompiled import uncompiled

SCRIPT = """
import gc, json, sys, types
from tracer.capture.program import load_program
from tracer.capture.workload import Workload, record, record_symbolic

program = load_program("deepseek-ai/DeepSeek-V3", layers=4, dtype="fp8")
record(program, Workload("training", 2, 16, 16))
record_symbolic(program, Workload("prefill", 2, 16, 16, "none"))
absent = [n for n in sys.modules if n.startswith("torch._dynamo") or n.endswith(".validator")]
marked = [
    f.__qualname__ for f in gc.get_objects()
    if isinstance(f, types.FunctionType) and "__dynamo_disable" in f.__dict__
]

import torch

compiled = torch.compile(lambda x: x * 2 + 1, backend="eager", fullgraph=True)
import torch._dynamo.exc
from torch.fx.experimental import validator

print(json.dumps({
    "absent": absent, "marked": marked, "works": compiled(torch.ones(2)).tolist(),
    "file": torch._dynamo.__file__ is not None and hasattr(torch._dynamo, "explain"),
    "error": issubclass(torch._dynamo.exc.TorchDynamoException, RuntimeError),
    "validator": hasattr(validator, "ValidationException"),
}))
"""


def test_a_bundled_model_is_traced_without_the_compiler_which_works_afterwards():
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    found = json.loads(ran.stdout)
    assert found["absent"] == []
    assert found["marked"] == []  # what was told "not compiled" is asked again
    assert found["works"] == [3.0, 3.0]
    assert found["file"] and found["error"] and found["validator"]


def test_a_compiler_that_is_there_stays():
    before = {name: m for name, m in sys.modules.items() if name.startswith("torch._dynamo")}
    with uncompiled():
        assert sys.modules["torch._dynamo"] is before["torch._dynamo"]
        assert torch._dynamo.config is config
    assert {n: m for n, m in sys.modules.items() if n.startswith("torch._dynamo")} == before
