"""The Python API: what a person sees after `with tracer.trace(model) as t:`."""

import csv
import itertools
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import tracer
from tracer import UserError


class Twice(nn.Module):
    """A shared linear called twice: 2 calls, one parameter."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(8, 8, bias=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.relu(self.shared(self.shared(x))))


def session(batch=4, model=None):
    with torch.device("meta"):
        model = model or Twice()
        x = torch.empty(batch, 8)
    with tracer.trace(model) as t:
        model(x).sum().backward()
    return t


# 2 calls of 8x8 and one 8x3, on 4 rows; 2 FLOPs a multiply-add.
FORWARD = 2 * 4 * (2 * 8 * 8 + 8 * 3)
# Every linear pays twice in backward, but the first, whose input needs no gradient.
BACKWARD = 2 * FORWARD - 2 * 4 * 8 * 8


def test_flops_and_parameters():
    t = session()
    assert t.flops == FORWARD + BACKWARD
    assert t.ledger().total("forward").total_flops == FORWARD
    assert t.ledger().total("backward").total_flops == BACKWARD
    assert t.parameters == 8 * 8 + 8 * 3 + 3
    assert sum(t.bytes.values()) == t.cost.total_bytes


@pytest.mark.parametrize("by", ["module", "op", "phase"])
@pytest.mark.parametrize("sort", ["bytes", "flops", "vector_flops", "order"])
def test_table_rows_add_to_the_total(by, sort):
    t = session()
    _, rows = t._rows(by, None, sort, 2)
    assert rows[-1][0] == "total"
    groups = {"module": 3, "op": 8, "phase": 2}
    assert len(t.table(by, sort=sort, top=2).splitlines()) == 2 + len(rows)
    assert len(rows) <= min(groups[by], 2) + 2


def test_table_depth_cuts_paths():
    with torch.device("meta"):
        model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 2))
    with tracer.trace(model) as t:
        model(torch.empty(1, 2, device="meta"))
    names = [row[0] for row in t._rows("module", 1, "order", 9)[1]]
    assert names == ["0", "1", "total"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"by": "layer"}, r"by='layer'.*module, op, phase"),
        ({"sort": "size"}, r"sort='size'.*bytes, flops"),
        ({"top": 0}, r"top=0"),
        ({"depth": 0}, r"depth=0"),
    ],
)
def test_table_refuses(arguments, said):
    with pytest.raises(UserError, match=said):
        session().table(**arguments)


def test_tree_shows_calls_parameters_and_passes():
    lines = session().tree().splitlines()
    assert lines[0].startswith("(Twice) Twice, 91 params")
    shared = next(line for line in lines if "(shared)" in line)
    assert "2 calls" in shared
    assert "64 params" in shared
    assert f"{2 * 2 * 4 * 64 / 1e3:.3f} kFLOP forward" in shared


def test_print_and_html_hold_the_totals():
    t = session()
    flops = f"{(FORWARD + BACKWARD) / 1e3:.3f} k"
    assert flops in str(t)
    assert flops in t._repr_html_()
    assert "<table>" in t._repr_html_()
    assert "not recorded yet" in repr(tracer.trace(None))


def test_times_on_a_chip():
    times = session().on("h200_sxm")
    assert times.step >= times.bound > 0
    with pytest.raises(UserError, match="h200_sxm"):
        session().on("h200_sxn")


def test_before_the_block_ends_there_is_no_trace():
    t = tracer.trace(None)
    with pytest.raises(UserError, match="after the 'with' block"):
        _ = t.flops
    with pytest.raises(UserError, match="inside the 'with' block"):
        t.mark("kv", [])
    with t:
        torch.empty(2, device="meta").add(1)
    with pytest.raises(UserError, match="inside the 'with' block"):
        t.mark("kv", [])
    with pytest.raises(UserError, match="records once"), t:
        pass


def test_a_module_that_raises_leaves_a_readable_trace():
    class Fails(nn.Module):
        def forward(self, x):
            x = x @ x
            raise ValueError("midway")

    t = tracer.trace(Fails())
    with pytest.raises(ValueError, match="midway"), t:
        Fails()(torch.empty(4, 4, device="meta"))
    assert t.flops == 2 * 4**3


def test_compare_names_what_changed():
    same = session().compare(session())
    assert same.startswith("no difference")
    text = session().compare(session(batch=8))
    assert "shared" in text
    assert "->" in text


def test_save_and_load_are_the_identity(tmp_path):
    t = session()
    loaded = tracer.load(t.save(tmp_path / "t.json.gz"))
    assert loaded.trace == t.trace
    assert loaded.cost == t.cost
    assert not list(tmp_path.glob(".*"))


def test_a_loaded_trace_is_priced_without_torch(tmp_path):
    t = session()
    path = t.save(tmp_path / "t.json.gz")
    code = (
        "import sys, tracer; t = tracer.load(sys.argv[1]); "
        "print(t.flops, t.on('h200_sxm').step > 0, 'torch' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert out.stdout.split() == [str(t.flops), "True", "False"]


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "no trace at"), (b"hello", "not a trace"), (b"\x1f\x8b\x08", "not a trace")],
)
def test_load_refuses(tmp_path, content, said):
    path = tmp_path / "x.json.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        tracer.load(path)


def test_truncated_trace(tmp_path):
    path = session().save(tmp_path / "t.json.gz")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="damaged"):
        tracer.load(path)


def test_exports_re_add(tmp_path):
    t = session()
    with (t.export(tmp_path / "ops.csv")).open() as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["flops"]) for row in rows) == t.flops
    assert sum(int(row["bytes"]) for row in rows) == t.cost.total_bytes
    timed = json.loads(t.export(tmp_path / "ops.json", "h200_sxm").read_text())
    assert sum(row["seconds"] for row in timed) == pytest.approx(t.on("h200_sxm").step, rel=1e-12)
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(t.export(tmp_path / "ops.parquet"))
    assert sum(table["flops"].to_pylist()) == t.flops
    with pytest.raises(UserError, match=r"\.csv, \.json, \.parquet"):
        t.export(tmp_path / "ops.xlsx")
    with pytest.raises(UserError, match="folder does not exist"):
        t.export(tmp_path / "none" / "ops.csv")


def test_chrome_trace_is_the_predicted_step(tmp_path):
    t = session()
    events = json.loads(t.export_chrome_trace(tmp_path / "c.json", "h200_sxm").read_text())
    slices = [e for e in events["traceEvents"] if e["ph"] == "X"]
    assert sum(e["dur"] for e in slices) == pytest.approx(t.on("h200_sxm").step * 1e6, rel=1e-9)
    for before, after in itertools.pairwise(slices):
        assert after["ts"] == pytest.approx(before["ts"] + before["dur"])
    assert any(e["ph"] == "C" and e["args"]["weights"] == 91 * 4 for e in events["traceEvents"])


def test_chakra_has_the_fields_of_torchs_own_observer(tmp_path):
    """The node layout is compared with one that torch writes here and now."""
    from torch.profiler import ExecutionTraceObserver

    observer = ExecutionTraceObserver()
    observer.register_callback(str(tmp_path / "torch.json"))
    observer.start()
    torch.ones(2, 3).mm(torch.ones(3, 4))
    observer.stop()
    observer.unregister_callback()
    theirs = json.loads((tmp_path / "torch.json").read_text())
    ours = json.loads(session().export_chakra(tmp_path / "ours.json").read_text())
    assert ours["schema"] == theirs["schema"]
    mm = next(node for node in theirs["nodes"] if node["name"] == "aten::mm")
    mine = next(node for node in ours["nodes"] if node["name"] == "aten::mm")
    for field in ("id", "name", "ctrl_deps", "inputs", "outputs", "attrs"):
        assert field in mine
        assert type(mine[field]) is type(mm[field])
    assert set(mm["inputs"]) == set(mine["inputs"])
    assert mine["inputs"]["types"][:2] == mm["inputs"]["types"][:2]
    assert len(mine["inputs"]["values"][0]) == len(mm["inputs"]["values"][0])
    ids = [node["id"] for node in ours["nodes"]]
    assert len(set(ids)) == len(ids)
    assert all(node["ctrl_deps"] in ids for node in ours["nodes"])


def test_roofline_plot(tmp_path):
    path = session().roofline_plot("h200_sxm", tmp_path / "roof.png")
    assert path.read_bytes().startswith(b"\x89PNG")
