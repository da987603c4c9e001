"""The group API against every NCCL row at hand, all sizes and libraries."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    path = ROOT / "scripts" / "score_network.py"
    spec = importlib.util.spec_from_file_location("score_network", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["score_network"] = module
    spec.loader.exec_module(module)
    return module


def test_all_reduce_and_all_gather_of_h200(script, measured):
    lines = {(x.op, x.ranks): x for x in script.score(measured)}
    for op in ("all_reduce", "all_gather"):
        line = lines[op, 8]
        assert line.chip == "h200_sxm"
        assert line.rows >= 40
        assert line.every * 100 <= 15
        assert line.long_rows >= 10
        assert line.long * 100 <= 10


def test_it_prints_a_table(script, folder, capsys):
    header = "system,lib,op_name,nccl_dtype,num_gpus,elements,bytes,latency_us"
    data = folder(
        "nccl_h200.csv", header, ("h200_sxm", "nccl_x", "all_reduce", "half", 8, 512, 1024, 17.23)
    )
    assert script.main(["--data", str(data)]) == 0
    out = capsys.readouterr().out
    assert "all_reduce" in out
    assert "h200_sxm" in out
    assert script.main(["--data", str(data / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_chips_without_a_cluster_are_left_out_and_named(script, folder, capsys):
    header = "family,chip,backend,reduces,ranks,bytes,latency_us"
    rows = [("collective", chip, "nccl", 1, 8, 1048576, 27.7) for chip in ("h20", "h800")]
    data = folder("mine.csv", header, *rows)
    assert [(x.chip, x.op, x.ranks, x.rows) for x in script.score(data)] == [
        ("h800_sxm", "all_reduce", 8, 1)
    ]
    assert "no cluster of h20: 1 rows left out" in capsys.readouterr().err
