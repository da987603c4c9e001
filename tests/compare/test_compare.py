"""`python -m tracer.compare`: small profiles with known answers, and what it refuses."""

import gzip
import json
import sqlite3

import pytest
import torch

import tracer
from tracer.compare import main

BF16 = "c10::BFloat16"


class Chrome:
    """Writes events as torch.profiler does; µs. `op` opens an op of 10 µs on the CPU."""

    def __init__(self):
        self.events, self.now, self.last = [], 0.0, 0

    def op(self, name, *shapes, kind=BF16, at=None, dur=10.0, concrete=None, cat="cpu_op", **args):
        at = self.now if at is None else at
        self.now = max(self.now, at + dur + 1)
        self.last += 1
        if shapes:
            args |= {"Input Dims": [list(s) for s in shapes], "Input type": [kind] * len(shapes)}
        if concrete:
            args["Concrete Inputs"] = concrete
        event = {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": 1, "ts": at, "dur": dur,
                 "args": {"External id": self.last, **args}}  # fmt: skip
        self.events.append(event)
        return self.last

    def kernel(self, name, at, dur, external=None, correlation=None):
        args = {"External id": external, "correlation": correlation}
        args = {key: value for key, value in args.items() if value is not None}
        self.events.append({"ph": "X", "cat": "kernel", "name": name, "pid": 0, "tid": 7,
                            "ts": at, "dur": dur, "args": args})  # fmt: skip

    def launch(self, at, correlation):
        self.events.append(
            {
                "ph": "X",
                "cat": "cuda_runtime",
                "name": "cudaLaunchKernel",
                "pid": 1,
                "tid": 1,
                "ts": at,
                "dur": 1,
                "args": {"correlation": correlation},
            }
        )

    def write(self, path):
        path.write_text(json.dumps({"schemaVersion": 1, "traceEvents": self.events}))
        return path


def run(capsys, *arguments):
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err.strip()


def document(capsys, *arguments):
    code, out, err = run(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


@pytest.fixture
def chrome():
    return Chrome()


def test_a_profile_on_its_own(chrome, tmp_path, capsys):
    mm = chrome.op("aten::mm", (4096, 4096), (4096, 4096))
    add = chrome.op("aten::add", (4096, 4096), (4096, 4096), ())
    # A number is told from a tensor without dimensions by its type.
    chrome.events[-1]["args"] |= {
        "Input type": [BF16, BF16, "Scalar"],
        "Concrete Inputs": ["", "", "1"],
    }
    own = chrome.op("mylib::fancy", (64, 64))
    chrome.kernel("nvjet_tst", 100, 200, mm)
    chrome.kernel("vectorized_add", 350, 40, add)  # 50 µs after the product
    chrome.kernel("fancy_kernel", 390, 10, own)
    chrome.kernel("stray", 400, 5)
    path = chrome.write(tmp_path / "t.json")
    found = document(capsys, path, "--chip", "h100_sxm")
    assert (found["kernels"], found["chip"]) == (4, "h100_sxm")
    assert found["span"] == pytest.approx(305e-6)
    assert [g["seconds"] for g in found["gaps"]] == pytest.approx([50e-6])
    assert found["gaps"][0]["after"] == "nvjet_tst"
    assert found["unexplained"] == [{"kernel": "stray", "count": 1, "seconds": pytest.approx(5e-6)}]
    ops = {op["op"]: op for op in found["ops"]}
    # 2 * 4096^3 FLOPs at 989 TFLOP/s are 139 µs; nothing runs faster.
    assert 139e-6 < ops["aten::mm"]["predicted"] < 260e-6
    assert ops["aten::mm"]["measured"] == pytest.approx(200e-6)
    # Three times 32 MiB at 3.35 TB/s are 30 µs.
    assert 30e-6 < ops["aten::add"]["predicted"] < 60e-6
    assert ops["mylib::fancy"]["predicted"] is None
    assert {line["name"] for line in found["by_class"]} == {"gemm", "pointwise", "not predicted"}
    assert sum(s["seconds"] for s in found["steps"]) == pytest.approx(found["span"])


def test_the_text_has_every_table(chrome, tmp_path, capsys):
    mm = chrome.op("aten::mm", (64, 64), (64, 64))
    chrome.op("aten::mm", (32, 32), (32, 32))  # without a kernel
    chrome.kernel("k", 0, 5, mm)
    chrome.kernel("stray", 9, 5)
    code, out, _ = run(capsys, chrome.write(tmp_path / "t.json"), "--chip", "h100_sxm")
    assert code == 0
    for text in ("op class", "kernels that no op explains", "ops without kernels", "idle us",
                 "from the floor to the step", "measured/predicted"):  # fmt: skip
        assert text in out


def test_correlation_finds_the_innermost_open_op(chrome, tmp_path, capsys):
    chrome.op("aten::linear", (8, 64), (32, 64), at=0, dur=50)
    chrome.op("aten::mm", (8, 64), (64, 32), at=10, dur=30)
    chrome.launch(20, 77)
    chrome.kernel("gemm", 60, 4, correlation=77)
    (op,) = document(capsys, chrome.write(tmp_path / "t.json"))["ops"]
    assert (op["op"], op["kernels"], op["shapes"]) == ("aten::mm", ["gemm"], [[8, 64], [64, 32]])


def test_modules_of_forward_and_backward(chrome, tmp_path, capsys):
    chrome.op("nn.Module: Block_0", at=0, dur=100, cat="python_function")
    chrome.op("nn.Module: Linear_0", at=5, dur=50, cat="python_function")
    a = chrome.op("aten::mm", (8, 8), (8, 8), at=10, **{"Sequence number": 3})
    b = chrome.op("aten::mm", (8, 8), (8, 8), at=200, **{"Sequence number": 3})
    chrome.kernel("f", 300, 4, a)
    chrome.kernel("b", 310, 4, b)
    found = document(capsys, chrome.write(tmp_path / "t.json"))
    assert [op["module"] for op in found["ops"]] == ["Block_0.Linear_0"] * 2


def test_the_last_step_unless_asked(chrome, tmp_path, capsys):
    for number, dur in ((1, 5), (2, 7)):
        at = number * 100
        chrome.op(f"ProfilerStep#{number}", at=at, dur=90, cat="user_annotation")
        mm = chrome.op("aten::mm", (8, 8), (8, 8), at=at + 10)
        chrome.launch(at + 12, number)
        chrome.kernel("k", at + 20, dur, mm, number)
    path = chrome.write(tmp_path / "t.json")
    assert document(capsys, path)["span"] == pytest.approx(7e-6)
    assert document(capsys, path, "--step", 1)["span"] == pytest.approx(5e-6)
    code, _, err = run(capsys, path, "--step", 9)
    assert (code, "--step 9: it has 1, 2" in err) == (2, True)


def saved_model(tmp_path):
    """Two equal products, then one of another shape, then silu."""
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 64, bias=False), torch.nn.Linear(64, 64, bias=False),
        torch.nn.Linear(64, 32, bias=False), torch.nn.SiLU(),
    ).to("meta", torch.bfloat16)  # fmt: skip
    with torch.no_grad(), tracer.trace(model) as session:
        model(torch.empty(16, 64, device="meta", dtype=torch.bfloat16))
    return session.save(tmp_path / "saved.json.gz")


def test_repeated_ops_match_in_order(chrome, tmp_path, capsys):
    # The different product comes first in the file: shapes, not places, tell them apart.
    last = chrome.op("aten::mm", (16, 64), (64, 32))
    for dur in (11, 22):
        chrome.kernel("g", chrome.now + 100, dur, chrome.op("aten::mm", (16, 64), (64, 64)))
    chrome.kernel("last", 300, 33, last)
    path = chrome.write(tmp_path / "t.json")
    found = document(capsys, path, "--trace", saved_model(tmp_path), "--chip", "h200_sxm")
    measured = {op["module"]: op["measured"] for op in found["ops"]}
    assert measured == {
        "2": pytest.approx(33e-6), "0": pytest.approx(11e-6), "1": pytest.approx(22e-6),
    }  # fmt: skip
    assert [op["op"] for op in found["ops_without_kernels"]] == ["aten::silu"]
    assert sum(s["seconds"] for s in found["steps"]) == pytest.approx(found["span"])


def test_a_model_needs_no_shapes(chrome, tmp_path, capsys):
    chrome.kernel("silu", 300, 33, chrome.op("aten::silu"))
    path = chrome.write(tmp_path / "t.json")
    found = document(capsys, path, "--trace", saved_model(tmp_path))
    assert [(op["op"], op["module"]) for op in found["ops"]] == [("aten::silu", "3")]


def test_a_hugging_face_model(chrome, tmp_path, capsys):
    config = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
        "vocab_size": 128, "architectures": ["LlamaForCausalLM"],
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    for _ in range(2):
        chrome.kernel("silu", chrome.now, 3, chrome.op("aten::silu", (1, 16, 128)))
    path = chrome.write(tmp_path / "t.json")
    found = document(capsys, path, "--hf-config", tmp_path, "--seq", 16)
    assert len({op["module"] for op in found["ops"]}) == 2
    assert all("mlp" in op["module"] and op["predicted"] for op in found["ops"])


def nsight(path, kernels=True, nvtx="aten::mm, op_id = 3, sizes = [[64, 64], [64, 64]]"):
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE StringIds (id INTEGER, value TEXT)")
        db.execute("INSERT INTO StringIds VALUES (5, 'gemm_kernel')")
        if kernels:
            db.execute("CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INTEGER, end INTEGER, "
                       "correlationId INTEGER, demangledName INTEGER)")  # fmt: skip
            db.execute("INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (5000, 9000, 12, 5)")
        db.execute("CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (start INTEGER, end INTEGER, "
                   "correlationId INTEGER, globalTid INTEGER)")  # fmt: skip
        db.execute("INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES (2000, 2500, 12, 1)")
        db.execute("CREATE TABLE NVTX_EVENTS (start INTEGER, end INTEGER, text TEXT, "
                   "globalTid INTEGER)")  # fmt: skip
        db.execute("INSERT INTO NVTX_EVENTS VALUES (1000, 3000, ?, 1)", (nvtx,))
    db.close()
    return path


def test_nsight_systems(tmp_path, capsys):
    found = document(capsys, nsight(tmp_path / "r.sqlite"))
    (op,) = found["ops"]
    assert (op["op"], op["kernels"]) == ("aten::mm", ["gemm_kernel"])
    assert op["measured"] == pytest.approx(4e-6)
    assert op["predicted"] > 0
    assert "no dtypes" in found["notes"][0]


def test_a_gzipped_profile(chrome, tmp_path, capsys):
    chrome.kernel("k", 20, 3, chrome.op("aten::mm", (8, 8), (8, 8)))
    plain = chrome.write(tmp_path / "t.json")
    (tmp_path / "t.json.gz").write_bytes(gzip.compress(plain.read_bytes()))
    assert document(capsys, tmp_path / "t.json.gz")["kernels"] == 1


def test_a_profile_of_the_cpu_has_no_kernels(tmp_path, capsys):
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True, acc_events=True
    ) as profiler:
        torch.ones(4, 4) @ torch.ones(4, 4)
    profiler.export_chrome_trace(str(tmp_path / "cpu.json"))
    code, _, err = run(capsys, tmp_path / "cpu.json")
    assert code == 2
    assert "no GPU kernels, only" in err
    assert "cpu_op" in err
    assert len(err.splitlines()) == 1


def refused(capsys, fault, *arguments):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("tracer.compare: ")
    assert len(err.splitlines()) == 1
    assert fault in err


def test_what_it_refuses(chrome, tmp_path, capsys):
    chrome.kernel("k", 20, 3, chrome.op("aten::mm"))
    bare = chrome.write(tmp_path / "bare.json")
    refused(capsys, "record_shapes=True", bare)
    refused(capsys, "no chip 'h2000'", bare, "--chip", "h2000")
    refused(capsys, "No such file", tmp_path / "none.json")
    refused(capsys, "give one prediction", bare, "--trace", "x", "--hf-config", "y")
    refused(capsys, "--help lists the options", bare, "--chips", "x")
    cut = tmp_path / "cut.json"
    cut.write_text(bare.read_text()[:-20])
    refused(capsys, "truncated: ", cut)
    refused(capsys, "line 1, column", cut)
    (tmp_path / "cut.gz").write_bytes(gzip.compress(bare.read_bytes())[:-12])
    refused(capsys, "damaged or truncated gzip", tmp_path / "cut.gz")
    other = tmp_path / "other.json"
    for text, fault in (
        ('{"a": 1, "b": 2}', "no 'traceEvents', it has a, b"),
        ('{"traceEvents": []}', "no GPU kernels, only no timed events"),
        ("3", "no list of events"),
        ('{"traceEvents": [{"ph": "X", "cat": "kernel", "name": "k"}]}', "event 0: not as the"),
    ):
        other.write_text(text)
        refused(capsys, fault, other)
    refused(capsys, "no table CUPTI_ACTIVITY_KIND_KERNEL", nsight(tmp_path / "a.sqlite", False))
    refused(capsys, "record_shapes=True", nsight(tmp_path / "b.sqlite", nvtx="aten::mm, seq = 1"))
    (tmp_path / "c.sqlite").write_bytes(b"SQLite format 3\0" + b"x" * 200)
    refused(capsys, "not a readable Nsight Systems export", tmp_path / "c.sqlite")
