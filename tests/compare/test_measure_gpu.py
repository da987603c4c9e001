"""`scripts/measure_gpu.py` where there is no GPU: the grid, the error, the files it writes."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tracer.hardware import load_chip
from tracer.machine.calibration import calibration_of
from tracer.machine.families import predict
from tracer.machine.kernels import CLASSES
from tracer.machine.measured import COLUMNS, read_file, read_folder
from tracer.validate import main as validate

SCRIPT = Path(__file__).parents[2] / "scripts" / "measure_gpu.py"
KERNELS = ("gemm", "gemm_fp8", "attention_prefill", "attention_decode", "mla_decode", "grouped",
           "elementwise")  # fmt: skip


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("measure_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cases_with_bytes(script, family):
    for case in script.GRID[family]:
        yield {**case, "bytes": 4 * case["elements"]} if family == "elementwise" else case


def seconds_of(script, family):
    columns = {
        name: np.array([
            float(CLASSES.index(case[name]) if name == "access" else case[name])
            for case in cases_with_bytes(script, family)
        ])
        for name in COLUMNS[family]
    }  # fmt: skip
    return predict(family, columns, calibration_of(load_chip("h100_sxm")))


def test_the_grid(script, capsys):
    assert script.main(["--dry-run"]) == 0
    out = capsys.readouterr().out.splitlines()
    heads = [line for line in out if not line.startswith(" ")]
    assert [line.partition(":")[0] for line in heads] == [*KERNELS, "layers"]
    assert len(out) == len(heads) + sum(len(cases) for cases in script.GRID.values())
    assert "  m=1 n=1024 k=1024" in out
    assert "  layer=llama_8b pass=backward batch=1 seq=512" in out


def test_one_family(script, capsys):
    assert script.main(["--dry-run", "--families", "layers"]) == 0
    assert capsys.readouterr().out.startswith("layers: ")


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [(["--families", "gem"], "--families 'gem': choose of gemm,"),
     (["--repeats", "0"], "--repeats 0: give at least 1"),
     ([], "no CUDA GPU here")],
)  # fmt: skip
def test_what_it_refuses(script, capsys, monkeypatch, tmp_path, arguments, fault):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert script.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("measure_gpu: ")
    assert fault in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", KERNELS)
def test_what_it_writes_is_what_validate_reads(script, family, tmp_path):
    rows = [
        {**case, "latency_us": f"{t * 1e6:.4f}", "eager_us": f"{t * 1e6 + 9:.4f}"}
        for case, t in zip(cases_with_bytes(script, family), seconds_of(script, family),
                           strict=True)
    ]  # fmt: skip
    script.write(family, "h100_sxm", tmp_path / f"measured_{family}_h100_sxm.csv", rows)
    (found,) = read_folder(tmp_path)
    assert (found.family, found.chip, len(found)) == (family, "h100_sxm", len(rows))
    assert found.seconds == pytest.approx(seconds_of(script, family), rel=1e-3)


def test_validate_scores_them(script, tmp_path, capsys):
    rows = [
        {**case, "latency_us": f"{t * 1e6:.4f}"}
        for case, t in zip(script.GRID["gemm"], seconds_of(script, "gemm"), strict=True)
    ]
    script.write("gemm", "h100_sxm", tmp_path / "measured_gemm_h100_sxm.csv", rows)
    assert validate(["--data", str(tmp_path), "--out", str(tmp_path / "page.md")]) == 0
    assert "| gemm | h100_sxm |" in capsys.readouterr().out


def test_a_case_that_fails_is_left_out_and_told(script, tmp_path, monkeypatch):
    monkeypatch.setitem(script.GRID, "gemm", script.GRID["gemm"][:2])
    monkeypatch.setattr(script, "DEVICE", "cpu")
    calls = []

    def timer(call):
        calls.append(call())
        if len(calls) == 2:
            raise RuntimeError("CUDA out of memory\nmore")
        return 3.0, 9.0

    path = tmp_path / "measured_gemm_h100_sxm.csv"
    skipped = script.measure("gemm", "h100_sxm", path, timer)
    assert skipped == ["gemm m=1 n=4096 k=4096: RuntimeError: CUDA out of memory"]
    (sample,) = read_file(path)
    assert (sample.values, sample.seconds) == ((1.0, 1024.0, 1024.0), pytest.approx(3e-6))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


SMALL = {
    "gemm": {"m": 4, "n": 32, "k": 64},
    "attention_prefill": {"heads": 4, "kv_heads": 2, "batch": 1, "keys": 16, "size": 8},
    "attention_decode": {"heads": 4, "kv_heads": 2, "batch": 1, "keys": 16, "size": 8},
    "mla_decode": {"heads": 4, "batch": 1, "keys": 16},
    **{f"elementwise {a}": {"access": a, "elements": 4096} for a in CLASSES},
}


@pytest.mark.parametrize("name", SMALL)
def test_the_calls_run(script, name, monkeypatch):
    """On the CPU: shapes fit, and each case gets all of its family's columns."""
    monkeypatch.setattr(script, "DEVICE", "cpu")
    family = name.split()[0]

    def timer(call):
        assert call().numel()
        return 1.0, 2.0

    row = script._one(family, SMALL[name], timer)
    assert set(COLUMNS[family]) <= set(row)
    assert (row["latency_us"], row["eager_us"]) == ("1.000", "2.000")


def test_layers_are_no_kernels(script, tmp_path):
    row = {**script.GRID["layers"][0], "latency_us": 5, "eager_us": 6, "peak_bytes": 7}
    script.write("layers", "h100_sxm", tmp_path / "measured_layers_h100_sxm.csv", [row])
    assert read_folder(tmp_path) == []


def test_a_family_that_is_there_is_left_alone(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(script, "environment", lambda repeats: {"skipped": [], "gpu": "H100"})
    monkeypatch.setattr(script, "gpu_timer", lambda repeats: None)
    measured = []
    monkeypatch.setattr(script, "measure", lambda name, *rest: measured.append(name) or [])
    (tmp_path / "measured_gemm_h100_sxm.csv").write_text("")
    assert script.main(["--out", str(tmp_path), "--families", "gemm,grouped"]) == 0
    assert measured == ["grouped"]
    assert json.loads((tmp_path / "environment_h100_sxm.json").read_text())["gpu"] == "H100"
    assert "left alone" in capsys.readouterr().err


def test_an_unknown_gpu(script):
    with pytest.raises(ValueError, match="give --chip"):
        script.chip_of("Some Card")
    assert script.chip_of("NVIDIA H200") == "h200_sxm"
    assert script.chip_of("NVIDIA H20") == "h20"
