"""`python -m tracer.validate`: what it prints, and what it refuses."""

import pytest

from tracer.hardware import load_chip
from tracer.machine.calibration import calibration_of
from tracer.machine.families import predict
from tracer.machine.measured import in_fit_half, read_folder
from tracer.validate import main

GEMM = "gemm_dtype,m,n,k,one_us,two_us"
LONG = "family,chip,m,n,k,latency_us"
# Sixteen shapes, some on either side of the hash.
SHAPES = [(2**i, 1024, 1024) for i in range(16)]


def run(capsys, *arguments):
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err.strip()


def gemm_rows(scale=1.0):
    import numpy as np

    x = dict(zip("mnk", np.array(SHAPES, float).T, strict=True))
    seconds = predict("gemm", x, calibration_of(load_chip("h200_sxm"))) * scale
    return [("bfloat16", *shape, f"{t * 1e6:.4f}", f"{t * 2e6:.4f}")
            for shape, t in zip(SHAPES, seconds, strict=True)]  # fmt: skip


def test_without_data_it_says_so(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("tracer.validate.BUNDLED", tmp_path / "none")
    code, out, _ = run(capsys, "--out", tmp_path / "page.md")
    assert (code, out.splitlines()) == (
        0, ["nothing to validate: give a folder of measured CSV files with --data"],
    )  # fmt: skip
    assert not (tmp_path / "page.md").exists()


def test_the_best_backend_counts_and_only_unseen_rows(folder, capsys, tmp_path):
    data = folder("gemm_h200_sxm.csv", GEMM, *gemm_rows(1.25))
    code, out, err = run(capsys, "--data", data, "--out", tmp_path / "page.md")
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("| gemm ")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    unseen = sum(not in_fit_half(shape) for shape in SHAPES)
    assert 0 < unseen < len(SHAPES)
    # 1 / 1.25 - 1: 20 % early on every row.
    assert cells[:8] == [
        "gemm", "h200_sxm", "calibrated", str(unseen), "20.0", "20.0", "20.0", "-20.0",
    ]  # fmt: skip
    assert err.endswith("page.md")
    assert line in (tmp_path / "page.md").read_text()


def test_a_table_of_our_own_format(folder):
    data = folder(
        "mine.csv", "family,chip,backend,reduces,ranks,bytes,m,n,k,latency_us",
        ("collective", "h100", "nccl", 1, 8, 1048576, "", "", "", 27.7),
        ("gemm", "H200-SXM", "x", "", "", "", 64, 128, 256, 3.5),
        ("gemm", "H200-SXM", "y", "", "", "", 64, 128, 256, 3.0),
    )  # fmt: skip
    found = {(rows.family, rows.chip): rows for rows in read_folder(data)}
    assert set(found) == {("collective", "h100_sxm"), ("gemm", "h200_sxm")}
    gemm = found["gemm", "h200_sxm"]
    assert gemm.seconds.tolist() == pytest.approx([3.0e-6])
    assert gemm.second.tolist() == pytest.approx([3.5 / 3.0])


def test_other_files_are_left_alone(folder, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tracer.validate.BUNDLED", tmp_path / "none")
    data = folder("prices.csv", "chip,usd", ("h200", 3))
    code, out, _ = run(capsys, "--data", data, "--out", tmp_path / "page.md")
    assert code == 0
    assert out.startswith("nothing to validate")


def test_a_family_that_was_fitted_whole_says_so(folder, capsys, tmp_path):
    header = "family,chip,access,bytes,elements,latency_us"
    row = ("elementwise", "h100_sxm", "contiguous", 1e8, 1e7, 33.0)
    data = folder("mine.csv", header, row)
    _, out, _ = run(capsys, "--data", data, "--out", tmp_path / "page.md")
    assert "| elementwise | h100_sxm | calibrated, all rows fitted | 1 |" in out


BAD = {
    "no folder": (None, "no such folder"),
    "no column": (("gemm_h200_sxm.csv", "gemm_dtype,m,n,one_us", ("bfloat16", 1, 2, 3.0)),
                  "gemm_h200_sxm.csv: column 'k' is missing"),
    "no backend": (("gemm_h200_sxm.csv", "gemm_dtype,m,n,k", ("bfloat16", 1, 2, 3)),
                   "column '<backend>_us' is missing"),
    "zero": (("gemm_h200_sxm.csv", GEMM, ("bfloat16", 1, 2, 3, 4.0, 5.0),
              ("bfloat16", 1, 2, 3, 4.0, 0)),
             "row 3: column 'two_us': a time above zero, not 0"),
    "negative": (("nccl_h200.csv", "system,op_name,num_gpus,bytes,latency_us",
                  ("h200_sxm", "all_reduce", 8, 1024, -4)),
                 "row 2: column 'latency_us': a time above zero, not -4"),
    "not a number": (("gemm_h200_sxm.csv", GEMM, ("bfloat16", "big", 2, 3, 4.0, 5.0)),
                     "row 2: column 'm': a number, not 'big'"),
    "nan": (("gemm_h200_sxm.csv", GEMM, ("bfloat16", 1, 2, 3, "nan", 5.0)),
            "row 2: column 'one_us': a number, not 'nan'"),
    "no size": (("gemm_h200_sxm.csv", GEMM, ("bfloat16", 0, 2, 3, 4.0, 5.0)),
                "row 2: column 'm': at least 1, not 0"),
    "no chip": (("nccl_x.csv", "system,op_name,num_gpus,bytes,latency_us",
                 ("h2000", "all_reduce", 8, 1024, 4)), "row 2: no chip 'h2000'"),
    "no family": (("mine.csv", LONG, ("gem", "h200", 1, 2, 3, 4.0)),
                  "row 2: column 'family': 'gem'; known: gemm,"),
    "no family column": (("mine.csv", "family,chip,m,n,latency_us", ("gemm", "h200", 1, 2, 4.0)),
                         "column 'k' is missing"),
    "milliseconds": (("gemm_h200_sxm.csv", GEMM, *gemm_rows(1e-3)),
                     "3 times shorter than predicted; are they in microseconds?"),
    "nanoseconds": (("gemm_h200_sxm.csv", GEMM, *gemm_rows(1e3)),
                    "1,000 times longer than predicted; are they in microseconds?"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_it_refuses(name, folder, capsys, tmp_path):
    file, fault = BAD[name]
    data = tmp_path / "nowhere" if file is None else folder(*file)
    code, _, err = run(capsys, "--data", data, "--out", tmp_path / "page.md")
    assert code == 2
    assert err.startswith("tracer.validate: ")
    assert len(err.splitlines()) == 1
    assert fault in err
    assert not (tmp_path / "page.md").exists()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00broken", b"gemm_dtype,m,n,k,one_us\n"])
def test_empty_and_broken_files_do_not_crash(content, capsys, tmp_path):
    (tmp_path / "gemm_h200_sxm.csv").write_bytes(content)
    code, _, err = run(capsys, "--data", tmp_path, "--out", tmp_path / "page.md")
    assert code in (0, 2)
    assert len(err.splitlines()) <= 1


def test_unknown_options_exit_with_2(capsys):
    code, _, err = run(capsys, "--dta", "x")
    assert code == 2
    assert "--help lists the options" in err
