"""`--module` and `--input`: a person's own module, and one line for everything that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import flops, trace

from tracer.capture.inputspec import parse_input
from tracer.capture.usermodule import ModuleProgram
from tracer.capture.workload import Workload, record
from tracer.errors import UserError
from tracer.run import main

HERE = Path(__file__).parent
FILE = str(HERE / "own_modules.py")
CHIP = ["--chip", "h100_sxm", "--exec", "efficient"]


def test_inputs_from_the_command_line() -> None:
    own = ModuleProgram(f"{FILE}:tagger", [parse_input("ids:int64[B,S]")])
    assert own.phases == ("training", "forward")
    assert own.source == "module Tagger"
    forward = trace(own, "forward", batch=3, seq=5)
    assert flops(forward) == 2 * 3 * 5 * 16 * 8
    assert (forward.header["batch"], forward.header["seq"]) == (3, 5)
    assert flops(trace(own, "training", batch=3, seq=5)) == 3 * flops(forward)
    assert forward.header["ground"] == "meta"


def test_inputs_from_the_factory() -> None:
    own = ModuleProgram(f"{FILE}:convolutions")
    found = trace(own, "forward", batch=99, seq=99)
    assert flops(found) == 2 * 4 * 8 * 16 * 16 * 3 * 9  # its own batch of 4
    assert (found.header["batch"], found.header["seq"]) == (4, 1)
    # the gradient of the image is not computed
    assert flops(trace(own, "training")) == 2 * flops(found)


def test_an_output_with_a_loss_starts_the_backward_there() -> None:
    own = ModuleProgram(f"{FILE}:with_loss", [parse_input("x:fp32[B,4]")])
    forward, training = (trace(own, phase, batch=2) for phase in ("forward", "training"))
    one = 2 * 2 * 4 * 4
    assert flops(forward) == 2 * one
    assert flops(training) == 2 * one + one  # weight gradient of one layer, of two


def test_only_parameters_with_a_gradient_are_updated() -> None:
    own = ModuleProgram(f"{FILE}:with_loss", [parse_input("x:fp32[B,4]")])
    found = record(own, Workload("training", 2, 1, 1))
    held = sum(s.nbytes for s in found.storages if s.role == "optimizer")
    assert held == 2 * 4 * (4 * 4 + 4) + 2 * 4  # two FP32 moments of 4x4 + 4, two step counters


def test_a_loop_over_experts_is_balanced() -> None:
    own = ModuleProgram(f"{FILE}:router", [parse_input("x:bf16[S,8]".replace("bf16", "fp32"))])
    found = trace(own, "forward", batch=1, seq=40)
    assert found.header["ground"] == "values"
    assert flops(found) == 2 * 40 * 8 * (4 + 8)  # the gate, and one expert for each token
    assert any("balanced" in note for note in found.header["notes"])


def test_a_factory_that_needs_values_is_built_on_its_own_device() -> None:
    own = ModuleProgram(f"{FILE}:from_data", [parse_input("x:fp32[B,4]")])
    found = trace(own, "forward", batch=2)
    assert flops(found) == 2 * 2 * 4 * 2
    assert any("built on its own device" in note for note in found.header["notes"])


def test_a_module_instance_is_a_target_too() -> None:
    own = ModuleProgram(f"{FILE}:instance", [parse_input("ids:int64[B,S]")])
    assert flops(trace(own, "forward", batch=1, seq=4)) == 2 * 4 * 16 * 8


def test_the_current_directory_is_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE)
    assert ModuleProgram("own_modules:convolutions").name == "own_modules:convolutions"


def test_specs() -> None:
    spec = parse_input("x: bf16[B, 3, 4*S, L]")
    assert (spec.name, spec.dtype) == ("x", torch.bfloat16)
    assert spec.shape(2, 8, 16) == (2, 3, 32, 16)
    assert parse_input("fp32[]").shape(1, 1, 1) == ()
    assert parse_input("int64[B*S]").name is None


ERRORS = {
    "x:bf17[B]": "no dtype 'bf17'; did you mean",
    "x:bf16[B,Q]": "dimension 'Q' is no product of numbers and B",
    "x:bf16": "write NAME:DTYPE[DIMS]",
    "x:bf16[B,-1]": "dimension '-1'",
    "x=bf16[B]": "write NAME:DTYPE[DIMS]",
}


@pytest.mark.parametrize("text", ERRORS)
def test_a_spec_that_cannot_be_read_is_repeated(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_input(text)
    assert repr(text) in str(caught.value) and ERRORS[text] in str(caught.value)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main([*arguments, *CHIP])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_answers(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(
        capsys, "--module", f"{FILE}:tagger", "--input", "ids:int64[B,S]", "--batch", "2",
        "--seq", "64",
    )  # fmt: skip
    assert code == 0, err
    assert "module Tagger" in out
    assert "training" in out and "forward" in out and "decode" not in out.split("coverage")[0]


WRONG: dict[str, tuple[list[str], str]] = {
    "no module": (["--module", "nowhere.at.all:make"], "cannot import nowhere.at.all"),
    "no file": (["--module", "nowhere.py:make"], "no file nowhere.py"),
    "no colon": (["--module", "own_modules"], "write PACKAGE.MODULE:FACTORY"),
    "no attribute": (["--module", f"{FILE}:taggr"], "has no 'taggr'; did you mean"),
    "not callable": (["--module", f"{FILE}:a_number"], "a_number is a int, not callable"),
    "not a module": (["--module", f"{FILE}:number"], "it returned a int, not an nn.Module"),
    "factory raises": (["--module", f"{FILE}:broken"], "it raises ValueError: no luck today"),
    "no inputs": (["--module", f"{FILE}:tagger"], "Tagger.forward takes ids: give each as --input"),
    "no such input": (
        ["--module", f"{FILE}:tagger", "--input", "id:int64[B,S]"],
        "--input 'id:int64[B,S]': Tagger.forward takes no 'id'; did you mean ids",
    ),
    "an input too few": (
        ["--module", f"{FILE}:tagger", "--input", "scale:fp32[]"],
        "Tagger.forward also needs ids: give each as --input",
    ),
    "forward raises": (
        ["--module", f"{FILE}:raises", "--input", "x:fp32[B]"],
        "RuntimeError: shapes do not please me",
    ),
    "no such phase": (
        ["--module", f"{FILE}:tagger", "--input", "ids:int64[B,S]", "--phase", "decode"],
        "cannot run phase 'decode': it has training, forward",
    ),
    "two models": (["--module", "a:b", "--exported", "c.pt2"], "give one model, not 2"),
    "none": ([], "name a model"),
    "dtype": (["--module", f"{FILE}:tagger", "--dtype", "fp8"], "--dtype goes with --hf-config"),
}


@pytest.mark.parametrize("what", WRONG)
def test_bad_input_is_one_line_and_exit_code_2(
    what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, expected = WRONG[what]
    code, out, err = run(capsys, *arguments)
    assert code == 2 and out == ""
    assert err.count("\n") == 1 and err.startswith("tracer: ")
    assert expected in err
