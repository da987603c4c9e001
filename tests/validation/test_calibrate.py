"""`scripts/calibrate.py`: constants out of measured rows, into a chip file."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from tracer.hardware import load_chip
from tracer.machine.calibration import calibration_of
from tracer.machine.families import predict
from tracer.machine.measured import COLUMNS

ROOT = Path(__file__).parents[2]
CHIP = ROOT / "hardware" / "chips" / "h200_sxm.toml"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("calibrate", ROOT / "scripts" / "calibrate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["calibrate"] = module
    spec.loader.exec_module(module)
    return module


TRUE = {"launch": 6e-6, "memory": 0.7, "matrix": 0.6, "prologue": 300.0, "serial": 0.3}


@pytest.fixture
def rows(folder):
    """Products as a chip with `TRUE` constants would run them."""
    cal = calibration_of(load_chip("h200_sxm"))
    for name, value in TRUE.items():
        cal = cal.with_value("gemm", name, value)
    cal = cal.with_value("power", "sag", 0.3)
    shapes = [(m, n, k) for m in (1, 16, 256, 4096, 32768) for n in (512, 4096, 12288)
              for k in (128, 1024, 4096, 16384)]  # fmt: skip
    x = dict(zip(COLUMNS["gemm"], np.array(shapes, float).T, strict=True))
    seconds = predict("gemm", x, cal)
    return folder(
        "gemm_h200_sxm.csv", "gemm_dtype,m,n,k,one_us",
        *(("bfloat16", *shape, t * 1e6) for shape, t in zip(shapes, seconds, strict=True)),
    )  # fmt: skip


def test_it_recovers_known_constants(script, rows):
    tables, lines = script.calibrate(load_chip("h200_sxm"), rows)
    found = {name: tables["gemm"][name][0] for name in TRUE}
    assert found == pytest.approx(TRUE, rel=0.01)
    assert tables["power"]["sag"][0] == pytest.approx(0.3, rel=0.02)
    assert tables["gemm"]["misfit"][0] < 1e-3
    assert any(line.startswith("gemm ") and "0.0%" in line for line in lines)


def test_it_writes_a_chip_file_that_loads(script, rows, tmp_path):
    copy = tmp_path / "mine.toml"
    copy.write_text(CHIP.read_text())
    before = load_chip(copy)
    assert script.main([str(copy), "--data", str(rows), "--write", "--from", "a bench"]) == 2
    # Rows are of the H200; a file of another id has none.
    copy = tmp_path / "h200_sxm.toml"
    copy.write_text(CHIP.read_text())
    assert script.main([str(copy), "--data", str(rows), "--write", "--from", "a bench"]) == 0
    after = load_chip(copy)
    assert after.calibration["gemm"]["memory"].value == pytest.approx(0.7, rel=0.01)
    assert "gemm_h200_sxm.csv" in after.sources["calibration.gemm.memory"]
    # What was not measured stays, and so does the datasheet.
    assert after.calibration["grouped"] == before.calibration["grouped"]
    assert after.peak == before.peak
    assert 'data = "a bench"' in copy.read_text()
    assert copy.read_text().count("[calibration]") == 1


def test_it_refuses_rows_that_do_not_show_every_constant(script, folder, capsys):
    # Long decode only: nothing but the memory's share shows.
    header = "family,chip,heads,kv_heads,batch,keys,size,latency_us"
    data = folder("mine.csv", header, *(
        ("attention_decode", "h200_sxm", 64, 8, batch, keys * 4096, 128, batch * keys * 4.0)
        for batch in range(64, 256, 8) for keys in (16, 32)
    ))  # fmt: skip
    assert script.main(["h200_sxm", "--data", str(data), "--all"]) == 2
    err = capsys.readouterr().err
    assert "mine.csv: attention_decode: not identifiable" in err
    assert "launch" in err
    assert len(err.splitlines()) == 1


def test_it_refuses_what_it_cannot_use(script, rows, folder, capsys):
    for arguments, fault in (
        (["h200_sxm", "--data", str(rows / "none")], "no such folder"),
        (["h300", "--data", str(rows)], "no chip 'h300'"),
        (["b200_sxm", "--data", str(rows)], "no rows of NVIDIA B200 SXM"),
        (["h200_sxm", "--data", str(rows), "--family", "gem"], "--family 'gem': choose one of"),
    ):
        assert script.main(arguments) == 2
        assert fault in capsys.readouterr().err


def test_the_constants_in_the_repository_are_those_of_the_data(script, measured):
    # Anyone can redo the fit: the chip file holds what the script finds, digit for digit.
    chip = load_chip("h200_sxm")
    tables, _ = script.calibrate(chip, measured)
    for family, table in tables.items():
        for name, (value, spread, _) in table.items():
            held = chip.calibration[family][name]
            assert held.value == pytest.approx(value, rel=2e-3), (family, name)
            assert held.spread == pytest.approx(spread, rel=0.05, abs=1e-3), (family, name)
