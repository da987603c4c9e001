"""What the command prints and writes: one JSON document, tables and files that agree with it."""

import csv
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import command_line
import pytest
from command_line import document, parse, run

from tracer.models import build
from tracer.report.written import MANIFEST
from tracer.run import main

ROLES = ("weights", "activations", "kv", "temporary", "gradients", "optimizer")
PHASES = ("training", "prefill", "decode")
RESULT_KEYS = {
    "phase", "exec", "batch", "seq", "context", "flops", "vector_flops", "bytes",
    "arithmetic_intensity", "t_compute", "t_hbm", "t_network", "t_step", "t_bound",
    "tokens_per_s", "regime", "feasible", "coverage",
}  # fmt: skip
SMALL = ("--batch", "2", "--seq", "32", "--context", "64")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return command_line.deepseek(tmp_path_factory.mktemp("deepseek"))


@pytest.fixture(scope="module")
def plain(config):
    """The document of the small run, all phases and executions."""
    return document("--hf-config", config, *SMALL)


def only(found, phase, execution):
    """The one result of this phase and execution."""
    (result,) = [r for r in found["results"] if (r["phase"], r["exec"]) == (phase, execution)]
    return result


def leaves(value, path=""):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from leaves(item, f"{path}[{number}]")
    else:
        yield path, value


def test_json_has_the_schema_of_the_issue_and_finite_numbers(plain):
    found = plain
    assert {"model", "chip", "results"} <= found.keys()
    assert {"name", "parameters", "active_parameters_per_token", "kv_bytes_per_token"} <= found[
        "model"
    ].keys()
    assert found["chip"] == "h200_sxm"
    combinations = [(r["phase"], r["exec"]) for r in found["results"]]
    assert sorted(combinations) == sorted((p, e) for p in PHASES for e in ("naive", "efficient"))
    for path, value in leaves(found):
        if isinstance(value, float):
            assert math.isfinite(value), path
    for result in found["results"]:
        assert result.keys() >= RESULT_KEYS
        assert result["bytes"].keys() == {*ROLES, "total"}
        assert result["bytes"]["total"] == sum(result["bytes"][role] for role in ROLES)
        assert (result["batch"], result["seq"], result["context"]) == (2, 32, 64)
        assert result["flops"] > 0
        assert result["vector_flops"] > 0
        assert result["t_step"] >= result["t_bound"] > 0
        assert result["t_bound"] == pytest.approx(
            max(result["t_compute"], result["t_hbm"], result["t_network"])
        )
        assert result["arithmetic_intensity"] == pytest.approx(
            result["flops"] / result["bytes"]["total"]
        )
        assert result["regime"] in ("compute", "memory", "network", "latency")
        assert isinstance(result["feasible"], bool)
        tokens = 2 * (1 if result["phase"] == "decode" else 32)
        assert result["tokens_per_s"] == pytest.approx(tokens / result["t_step"])
        for what in ("ops", "flops", "bytes", "time"):
            assert sum(row[what] for row in result["coverage"].values()) == pytest.approx(1)


def test_parameters_and_cache_by_hand(plain):
    model = plain["model"]
    c = command_line.DEEPSEEK
    d, heads = c["hidden_size"], c["num_attention_heads"]
    nope, rope, v = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    q_rank, rank = c["q_lora_rank"], c["kv_lora_rank"]
    attention = d * q_rank + q_rank + q_rank * heads * (nope + rope)
    attention += d * (rank + rope) + rank + rank * heads * (nope + v) + heads * v * d
    expert = 3 * d * c["moe_intermediate_size"]
    dense = 3 * d * c["intermediate_size"]
    outside = 2 * c["vocab_size"] * d + d
    norms = 2 * d
    experts, chosen = c["n_routed_experts"], c["num_experts_per_tok"]
    layers = c["num_hidden_layers"]
    sparse = d * experts + expert * c["n_shared_experts"]
    total = outside + layers * (attention + norms) + dense
    whole = total + (layers - 1) * (sparse + experts * expert)
    active = total + (layers - 1) * (sparse + chosen * expert)
    # The gate's correction bias is in the checkpoint, a parameter or a buffer: 16 a sparse layer.
    bias = (layers - 1) * experts
    assert model["parameters"] in (whole, whole + bias)
    assert model["active_parameters_per_token"] in (active, active + bias)
    assert model["kv_bytes_per_token"] == 2 * layers * (rank + rope)


def test_stdout_is_json_alone_and_a_process_agrees(config, tmp_path, plain):
    arguments = ["--hf-config", config, *SMALL, "--phase", "decode", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "tracer.run", *arguments],
        capture_output=True, text=True, cwd=tmp_path, check=True,
    )  # fmt: skip
    there = parse(done.stdout)
    assert there["results"] == [r for r in plain["results"] if r["phase"] == "decode"]
    assert there["model"] == plain["model"]
    assert "Warning" not in done.stderr


@pytest.fixture(scope="module")
def written(config, tmp_path_factory):
    """(folder, document) of one run with all files, on two chips."""
    out = tmp_path_factory.mktemp("out") / "new" / "deep"
    code, text, err = run(
        "--hf-config", config, *SMALL, "--chip", "h200_sxm", "--chip", "mi300x",
        "--out", out, "--json",
    )  # fmt: skip
    assert code == 0
    # A line a file, and one for each folder of many.
    wrote = re.findall(r"^wrote (\S+?)/?(?: \((\d+) files\))?$", err, re.M)
    listed = {str(path) for path in out.iterdir() if path.name != MANIFEST}
    assert {path for path, _ in wrote} == listed
    for path, count in wrote:
        assert not count or len(list(Path(path).iterdir())) == int(count)
    return out, parse(text)


def test_files_of_out(written):
    out, found = written
    assert {path.name for path in out.iterdir()} == {
        "report.md", "report.html", "report.json", "ops.csv", "tables", "figures", MANIFEST
    }  # fmt: skip
    report = (out / "report.md").read_text()
    pictures = sorted((out / "figures").iterdir())
    assert {path.suffix for path in pictures} == {".png", ".svg"}
    for path in pictures:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG\r\n")
            assert path.with_suffix(".svg") in pictures
            assert f"](figures/{path.name})" in report
        else:
            assert "<svg" in path.read_text()
    page = (out / "report.html").read_text()
    for name in ("NVIDIA H200", "MI300X", *PHASES):
        assert name in report
        assert name in page
    written = parse((out / "report.json").read_text())
    tables = written.pop("tables")
    assert written == found
    assert {path.stem for path in (out / "tables").iterdir()} == tables.keys()
    for name, table in tables.items():
        with (out / "tables" / f"{name}.csv").open(newline="") as file:
            head, *rows = csv.reader(file)
        assert head == [column["key"] for column in table["columns"]]
        assert len(rows) == len(table["rows"])


def test_ops_csv_adds_up_to_the_report(written):
    out, found = written
    with (out / "ops.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    for result in found["results"]:
        mine = [
            row for row in rows
            if (row["chip"], row["workload"], row["exec"])
            == (result["chip"], result["phase"], result["exec"])
        ]  # fmt: skip
        assert sum(int(row["flops"]) for row in mine) == result["flops"]
        assert sum(int(row["vector_flops"]) for row in mine) == result["vector_flops"]
        assert sum(int(row["bytes"]) for row in mine) == result["bytes"]["total"]
        for role in ROLES:
            assert sum(int(row[f"{role}_bytes"]) for row in mine) == result["bytes"][role]
        assert sum(float(row["seconds"]) for row in mine) == pytest.approx(
            result["t_step"], rel=1e-6
        )
        counted = {row["confidence"] for row in mine}
        assert counted == set(result["coverage"])


def test_tables_of_the_report_add_up(written):
    out, found = written
    first = found["chips"][0]
    checked = 0
    for result in found["results"]:
        if result["chip"] != first or result["exec"] != "efficient":
            continue
        name = f"modules_{result['phase']}_efficient.csv"
        with (out / "tables" / name).open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert sum(float(row["share"]) for row in rows) == pytest.approx(1)
        assert sum(float(row["seconds"]) for row in rows) == pytest.approx(result["t_step"])
        assert sum(int(row["flops"] or 0) for row in rows) == result["flops"]
        assert sum(int(row["bytes"]) for row in rows) == result["bytes"]["total"]
        for role in ROLES:
            cells = [row.get(f"{role}_bytes") or 0 for row in rows]
            assert sum(map(int, cells)) == result["bytes"][role]
        checked += 1
    assert checked == 3


def test_the_terminal_answer_has_every_result_and_the_conventions(config):
    code, out, err = run("--hf-config", config, *SMALL)
    assert (code, err) == (0, "")
    for phase in PHASES:
        assert len(re.findall(rf"^{phase}\s+(naive|efficient)\s", out, re.M)) == 2
    assert "waits for" in out
    for phrase in ("S(S+1)/2", "2 FLOPs", "routing=uniform", "coverage"):
        assert phrase in out
    assert "weight_residency" not in out


def test_full_equals_folded(config, plain):
    folded = plain
    full = document("--hf-config", config, *SMALL, "--full")
    assert full["model"] == folded["model"]
    for a, b in zip(full["results"], folded["results"], strict=True):
        for path, value in leaves(a):
            other = dict(leaves(b))[path]
            if isinstance(value, float):
                # The spread goes by kernels of one shape. One that reaches over a fold's edge (the
                # end of the last layer with the norm behind it) has another share of its ops there.
                rel = 1e-3 if "p10_p90" in path else 1e-9
                assert other == pytest.approx(value, rel=rel), (a["phase"], a["exec"], path)
            else:
                assert other == value, (a["phase"], a["exec"], path)


def test_chips_repeat_in_the_order_given(config):
    found = document(
        "--hf-config", config, *SMALL, "--phase", "decode", "--exec", "efficient",
        "--chip", "mi300x", "--chip", "h200_sxm",
    )  # fmt: skip
    assert found["chips"] == ["mi300x", "h200_sxm"]
    assert [r["chip"] for r in found["results"]] == ["mi300x", "h200_sxm"]
    slow, fast = sorted(found["results"], key=lambda r: -r["t_hbm"])
    assert slow["t_hbm"] / fast["t_hbm"] == pytest.approx(5.3e12 / 4.8e12, rel=1e-3)


def test_one_chip_under_two_names_is_one_chip(config):
    found = document(
        "--hf-config", config, *SMALL, "--phase", "decode", "--exec", "naive",
        "--chip", "h200", "--chip", "h200_sxm", "--chip", "H200-SXM",
    )  # fmt: skip
    assert found["chips"] == ["h200_sxm"]
    assert len(found["results"]) == 1


def test_assumptions_are_printed_and_residency_is_flagged(config, plain):
    base = ("--hf-config", config, *SMALL, "--phase", "decode", "--exec", "naive")
    assumed = document(*base, "--assume", "weight_residency=4")
    before, after = only(plain, "decode", "naive")["bytes"], assumed["results"][0]["bytes"]
    assert after["weights"] == pytest.approx(before["weights"] / 4, rel=1e-3)
    assert after["activations"] == before["activations"]
    notes = " ".join(assumed["conventions"])
    assert "weight_residency=4" in notes
    assert "BELOW" in notes
    assert "BELOW" not in " ".join(plain["conventions"])
    code, out, _ = run(*base, "--assume", "weight_residency=4")
    assert code == 0
    assert "BELOW the compulsory one read" in out
    code, out, _ = run(*base, "--assume", "weight_residency=0.5")
    assert "weight_residency=0.5" in out
    assert "BELOW" not in out


@pytest.mark.parametrize(
    ("assumption", "grows"),
    [("routing=all", "weights"), ("routing=same", None), ("activation_fusion=0.5", None)],
)
def test_assumptions_move_their_own_bytes(config, plain, assumption, grows):
    base = ("--hf-config", config, *SMALL, "--phase", "decode", "--exec", "naive")
    before = only(plain, "decode", "naive")
    after = document(*base, "--assume", assumption)["results"][0]
    assert after["flops"] == before["flops"]
    if grows:
        assert after["bytes"][grows] > before["bytes"][grows]
    else:
        assert after["bytes"]["total"] < before["bytes"]["total"]


def test_causal_full_counts_all_pairs(config, plain):
    base = ("--hf-config", config, *SMALL, "--phase", "prefill", "--exec", "efficient")
    half = only(plain, "prefill", "efficient")["flops"]
    full = document(*base, "--assume", "causal=full")["results"][0]["flops"]
    c, s = command_line.DEEPSEEK, 32
    sizes = c["qk_nope_head_dim"] + c["qk_rope_head_dim"] + c["v_head_dim"]
    pairs = s * s - s * (s + 1) // 2
    layers, heads = c["num_hidden_layers"], c["num_attention_heads"]
    assert full - half == 2 * layers * heads * pairs * 2 * sizes


def test_fp8_moves_products_to_the_fp8_rate_and_halves_weights(tmp_path):
    # FP8 products want sizes in multiples of 16.
    config = command_line.deepseek(tmp_path, q_lora_rank=32, qk_rope_head_dim=16)
    base = ("--hf-config", config, *SMALL, "--phase", "decode", "--exec", "naive")
    bf16, fp8 = document(*base), document(*base, "--dtype", "fp8")
    assert fp8["model"]["parameters"] >= bf16["model"]["parameters"]
    # Embedding, head and gate stay: 2·V·D + 5·E·D of about 650,000 parameters.
    assert fp8["model"]["weight_bytes"] < 0.7 * bf16["model"]["weight_bytes"]
    result = fp8["results"][0]
    assert result["flops_by_precision"]["fp8"] > 0.5 * result["flops"]
    assert result["flops"] == pytest.approx(only(bf16, "decode", "naive")["flops"], rel=0.05)


def test_layers_keeps_so_many(config):
    base = ("--hf-config", config, *SMALL, "--phase", "prefill", "--exec", "naive")
    sizes = {n: document(*base, "--layers", n)["model"]["parameters"] for n in (2, 3, 4)}
    assert sizes[4] - sizes[3] == sizes[3] - sizes[2] > 0


def test_the_module_of_multi_token_prediction_is_trained(tmp_path, plain):
    given = command_line.deepseek(tmp_path, num_nextn_predict_layers=1)
    found = document("--hf-config", given, "--mtp", *SMALL)
    module = build(parse(Path(given).read_text()), mtp=True).model.layers[-1]
    more = sum(p.numel() for p in module.parameters())
    assert found["model"]["parameters"] == plain["model"]["parameters"] + more
    assert {result["phase"] for result in found["results"]} == {"training"}
    flops, without = (only(each, "training", "efficient")["flops"] for each in (found, plain))
    # Each of its linears, and the head again, takes a product forward and two backward; experts
    # 4 of 16. 2 sequences of 32 tokens; MLA's pairs of queries and keys on top.
    shapes = {name: p for name, p in module.named_parameters() if p.dim() > 1}
    linear = sum(p.numel() / (4 if ".experts." in name else 1) for name, p in shapes.items())
    linear += 96 * 64  # the head
    pairs = 2 * (32 * 33 // 2) * 4 * (16 + 8 + 16)
    assert flops - without == 3 * 2 * (64 * linear + pairs)
    out = run("--hf-config", given, "--mtp", *SMALL)[1]
    assert "KV" not in out
    assert "reference model (tracer.models), with its MTP module" in out


def test_infeasible_is_said(tmp_path):
    config = command_line.deepseek(tmp_path, hidden_size=8192, moe_intermediate_size=16384,
                                  n_routed_experts=64, n_group=8, num_hidden_layers=30)  # fmt: skip
    base = ("--hf-config", config, *SMALL, "--phase", "decode", "--exec", "efficient")
    result = document(*base)["results"][0]
    assert result["feasible"] is False
    _, out, _ = run(*base)
    assert "does not fit" in out
    assert re.search(r"\(\d[\d,.]*\)", out)  # tokens/s in brackets
    assert ">=" in out


def test_lists():
    code, out, err = run("--list-chips")
    assert (code, err) == (0, "")
    assert "h200_sxm" in out
    assert len(out.splitlines()) >= 18 + 2
    code, out, err = run("--list-clusters")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) >= 9 + 2
    ours = next(line for line in out.splitlines() if line.startswith("h800_ib"))
    # DeepSeek's: 8 H800 a domain, 200 and 50 GB/s one way, 2.8 and 3.7 us, 2,048 chips at 2 USD.
    assert ours.split()[-8:] == ["8", "200", "50", "2.8", "/", "3.7", "2,048", "2.00"]
    code, out, err = run("--list-models")
    assert (code, err) == (0, "")
    assert "deepseek-ai/DeepSeek-V3" in out.splitlines()


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for option in ("--hf-config", "--chip", "--phase", "--batch", "--seq", "--context", "--dtype",
                   "--exec", "--out", "--json", "--strict", "--full", "--assume"):  # fmt: skip
        assert option in out


@pytest.mark.parametrize("option", ["--help", "--list-chips", "--list-clusters"])
def test_help_and_chips_cost_no_torch(option, tmp_path):
    program = (
        "import sys\n"
        "from tracer.run import main\n"
        "try:\n"
        f"    code = main([{option!r}])\n"
        "except SystemExit as stop:\n"
        "    code = stop.code\n"
        "heavy = [m for m in ('torch', 'transformers', 'matplotlib') if m in sys.modules]\n"
        "print(code, heavy, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stderr.split("\n")[-2] == "0 []"


def test_a_reader_that_stops_early_is_no_error(tmp_path):
    """`tracer --list-chips | head -1`"""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "tracer.run", "--list-chips"],
        stdout=write, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    os.close(write)
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 1, 120)


def test_the_same_command_gives_the_same_answer(config, plain):
    again = document("--hf-config", config, *SMALL, "--phase", "training")
    assert again["results"] == [r for r in plain["results"] if r["phase"] == "training"]
