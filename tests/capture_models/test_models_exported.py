"""`--exported`: a torch.export program traces as the module that it was made from."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_models import attention_ops, flops, trace
from torch import Tensor, nn

from tracer.capture.capture import Capture
from tracer.capture.exported import ExportedProgram
from tracer.errors import UserError
from tracer.run import main


class Block(nn.Module):
    """Attention and an MLP, with names to find again."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.mlp(attended.transpose(1, 2).flatten(2))
        return out


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("exported") / "block.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(Block().bfloat16(), (torch.zeros(2, 16, 32).bfloat16(),))
        torch.export.save(program, path)
    yield path


def test_the_same_ops_and_modules_as_the_module_itself(saved: Path) -> None:
    found = trace(ExportedProgram(str(saved)), "forward")
    with torch.device("meta"):
        block, x = Block().bfloat16(), torch.zeros(2, 16, 32).bfloat16()
    with torch.no_grad(), Capture(block) as capture:
        block(x)
    own = capture.trace
    heavy = ("aten.addmm.default", "aten._scaled_dot_product_flash_attention.default")
    for name in (*heavy, "aten.gelu.default"):
        theirs = Counter((own.module_of(op), op.outputs[0].shape) for op in own.ops
                         if op.name == name)  # fmt: skip
        ours = Counter((found.module_of(op), op.outputs[0].shape) for op in found.ops
                       if op.name == name)  # fmt: skip
        assert ours == theirs and theirs, name
    assert found.header["ground"] == "meta"


def test_counts_and_phases(saved: Path) -> None:
    program = ExportedProgram(str(saved))
    assert program.phases == ("training", "forward")
    forward, training = (trace(program, phase) for phase in ("forward", "training"))
    linears = 2 * 2 * 16 * (32 * 96 + 2 * 32 * 64)
    attention = 2 * 4 * (16 * 17 // 2) * (4 * 8)
    assert flops(forward) == linears + attention
    # the gradient of the input is not computed
    assert flops(training) == 3 * (linears + attention) - 2 * 2 * 16 * 32 * 96
    assert len(attention_ops(forward)) == 1
    assert forward.header["batch"] == 2


def test_the_command_answers(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--exported", str(saved), "--exec", "efficient", "--phase", "forward"]) == 0
    captured = capsys.readouterr()
    assert "torch.export program" in captured.out
    assert "note: forward: sizes are those that the program was exported with" in captured.err


def test_a_file_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="no such file"):
        ExportedProgram(str(tmp_path / "no.pt2"))
    text = tmp_path / "text.pt2"
    text.write_text("not a program")
    assert main(["--exported", str(text)]) == 2
    err = capsys.readouterr().err
    assert "torch.export cannot load it" in err and err.count("\n") == 1
    assert main(["--exported", str(text), "--input", "x:fp32[B]"]) == 2
    assert "has the inputs that it was exported with" in capsys.readouterr().err
