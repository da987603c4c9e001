"""Bad input: one line on standard error, exit code 2, no traceback, nothing written."""

import json
import socket
import subprocess
import sys

import command_line
import pytest
import torch
from command_line import run

from tracer.cost import registry

SMALL = ("--batch", "2", "--seq", "32", "--context", "64")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """An unknown name is looked for on the hub: here there is none."""

    def unreachable(*args, **kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """Run bad input; returns the one line that it gets."""
    monkeypatch.chdir(tmp_path)

    def refuse(*arguments):
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        code, stdout, stderr = run(*arguments)
        assert code == 2, stdout
        assert stdout == ""
        assert stderr.startswith("tracer: ")
        assert stderr.endswith("\n")
        assert stderr.count("\n") == 1, stderr
        assert "Traceback" not in stderr
        after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        assert after == before, "something was written"
        return stderr

    return refuse


@pytest.fixture
def config(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    return command_line.deepseek(folder)


# -- models ----------------------------------------------------------------------------------------


def test_no_model(refused):
    assert "--hf-config" in refused()


def test_an_unknown_model_lists_the_near_ones(refused):
    line = refused("--hf-config", "deepseek-ai/DeepSeek-V33")
    assert "deepseek-ai/DeepSeek-V33" in line
    assert "did you mean" in line
    assert "deepseek-ai/DeepSeek-V3" in line.split("did you mean")[1]


@pytest.mark.parametrize(
    "name", ["", "x" * 300, "no/such/model/anywhere", "../../etc", "a b", "--", "?*", "\0"],
    ids=["empty", "long", "deep", "up", "space", "dashes", "glob", "null"],
)  # fmt: skip
def test_strange_names(refused, name):
    refused(f"--hf-config={name}")


def test_a_folder_without_a_config(refused, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    line = refused("--hf-config", empty)
    assert str(empty) in line
    assert "config.json" in line


CONFIGS = {
    "empty": "",
    "broken": '{"model_type": "deepseek_v3", ',
    "list": "[1, 2]",
    "number": "17",
    "null": "null",
    "no type": '{"hidden_size": 3}',
    "type is a number": '{"model_type": 5}',
    "type is a list": '{"model_type": ["a"]}',
    "unknown type": '{"model_type": "transmogrifier"}',
    "nan": '{"model_type": "deepseek_v3", "hidden_size": NaN}',
    "nested": "[" * 100_000,
}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("as_folder", [False, True])
def test_malformed_configs(refused, tmp_path, kind, as_folder):
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "config.json").write_text(CONFIGS[kind])
    line = refused("--hf-config", folder if as_folder else folder / "config.json")
    assert "bad" in line


def test_a_config_that_is_not_text(refused, tmp_path):
    file = tmp_path / "config.json"
    file.write_bytes(b"\xff\xfe\x00\x01")
    refused("--hf-config", file)


@pytest.mark.parametrize("key", ["hidden_size", "n_routed_experts", "kv_lora_rank", "vocab_size"])
def test_a_missing_key_is_named(refused, tmp_path, key):
    folder = tmp_path / "m"
    folder.mkdir()
    line = refused("--hf-config", command_line.deepseek(folder, **{key: None}))
    assert f"'{key}'" in line


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 0), ("hidden_size", -4), ("hidden_size", 1.5), ("hidden_size", "big"),
        ("hidden_size", [64]), ("hidden_size", True), ("num_hidden_layers", 0),
        ("num_attention_heads", 0), ("num_experts_per_tok", 99), ("n_routed_experts", 3),
        ("vocab_size", 0), ("q_lora_rank", "a"), ("qk_rope_head_dim", 7),
        ("rope_scaling", {"type": "foo"}), ("rope_scaling", "yarn"), ("rope_theta", "x"),
        ("rms_norm_eps", "x"), ("topk_group", 9), ("first_k_dense_replace", -1),
        ("scoring_func", "relu"), ("topk_method", "best"), ("moe_layer_freq", 0),
        ("hidden_size", 10**18),
    ],
)  # fmt: skip
def test_a_bad_value_names_its_key(refused, tmp_path, key, value):
    folder = tmp_path / "m"
    folder.mkdir()
    line = refused(
        "--hf-config", command_line.deepseek(folder, **{key: value}), *SMALL, "--phase", "prefill"
    )
    if value != 10**18:
        assert key in line


@pytest.mark.parametrize("kind", ["t5", "vit", "whisper", "mamba"])
def test_a_type_that_is_no_decoder_is_one_line_or_an_answer(tmp_path, kind):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "num_layers": 1}))
    code, out, err = run(
        "--hf-config", tmp_path, *SMALL, "--phase", "decode", "--exec", "naive", "--layers", "1"
    )
    assert code in (0, 2)
    assert "Traceback" not in err
    assert code == 0 or (out == "" and err.count("\n") == 1)


# -- chips and precisions --------------------------------------------------------------------------


def test_an_unknown_chip_lists_the_near_ones(refused, config):
    line = refused("--hf-config", config, "--chip", "h200_smx")
    assert "h200_smx" in line
    assert "did you mean" in line
    assert "h200_sxm" in line


@pytest.mark.parametrize("chip", ["", "nope", "no/such.toml", "."])
def test_strange_chips(refused, config, chip):
    refused("--hf-config", config, f"--chip={chip}")


def test_a_good_and_a_bad_chip(refused, config):
    refused("--hf-config", config, "--chip", "h200_sxm", "--chip", "warp9")


def test_a_malformed_chip_file(refused, config, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('name = "Mine"\n')
    line = refused("--hf-config", config, "--chip", file)
    assert "mine.toml" in line
    assert "vendor" in line


def test_fp8_on_a_chip_without_it(refused, config):
    line = refused("--hf-config", config, "--dtype", "fp8", "--chip", "a100_sxm")
    assert "A100" in line
    assert "bf16" in line


@pytest.mark.parametrize("dtype", ["fp32", "FP8", "", "int8", "bfloat16"])
def test_an_unknown_dtype(refused, config, dtype):
    line = refused("--hf-config", config, *SMALL, f"--dtype={dtype}")
    assert "bf16" in line
    assert "fp8" in line


def test_a_module_of_multi_token_prediction_that_is_not_there(refused, config, tmp_path):
    said = "the model has no module of multi-token prediction (num_nextn_predict_layers)"
    assert said in refused("--hf-config", config, "--mtp")
    folder = command_line.transformers_folder("llama", tmp_path)
    assert "transformers' modelling code has no module" in refused("--hf-config", folder, "--mtp")
    assert "--mtp goes with --hf-config" in refused("--module", "a.b:c", "--mtp")
    with_one = command_line.deepseek(tmp_path, num_nextn_predict_layers=1)
    error = refused("--hf-config", with_one, "--mtp", "--phase", "decode")
    assert "cannot run phase 'decode': it has training" in error


def test_fp8_of_a_model_that_has_none(refused, tmp_path):
    folder = tmp_path / "llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    line = refused("--hf-config", folder, "--dtype", "fp8")
    assert "fp8" in line


# -- sizes and choices -----------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--batch", "--seq", "--context", "--layers"])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many", "", "nan", "1e3", "0x10", "٣٣٣x"])
def test_sizes_that_are_none(refused, config, flag, value):
    line = refused("--hf-config", config, f"{flag}={value}")
    assert flag.strip("-") in line


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--batch", 10**16), ("--batch", 10**30), ("--seq", 10**13), ("--seq", 10**30),
        ("--context", 10**17), ("--context", 10**30),
    ],
)  # fmt: skip
def test_sizes_that_no_tensor_can_have(refused, config, flag, value):
    phase = "decode" if flag == "--context" else "prefill"
    line = refused("--hf-config", config, *SMALL, flag, value, "--phase", phase)
    assert str(value) in line


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--phase", "inference"), ("--phase", ""), ("--phase", "Decode"), ("--phase", "forward"),
        ("--exec", "fast"), ("--exec", ""), ("--optimizer", "lion"), ("--optimizer", ""),
    ],
)  # fmt: skip
def test_unknown_choices_are_answered_with_the_known(refused, config, flag, value):
    line = refused("--hf-config", config, f"{flag}={value}", *SMALL)
    known = {"--phase": "prefill", "--exec": "naive", "--optimizer": "adamw"}[flag]
    assert known in line


def test_an_unknown_option(refused, config):
    line = refused("--hf-config", config, "--chips", "h200")
    assert "--chips" in line or "--help" in line


@pytest.mark.parametrize("flag", ["--hf-config", "--chip", "--out", "--assume", "--batch"])
def test_an_option_without_its_value(refused, config, flag):
    assert flag in refused("--hf-config", config, flag)


@pytest.mark.parametrize(
    "text",
    [
        "", "weight_residency", "=2", "weight_residency=", "weight_residency=two",
        "weight_residency=0", "weight_residency=-1", "weight_residency=nan",
        "weight_residency=inf", "weight_residency=1=2", "residency=2", "causal=half",
        "routing=zipf", "launch=-1", "launch=nan", "matmul_efficiency=0",
        "matmul_efficiency=1.5", "memory_efficiency=nan", "fp32_matmul=bf16",
    ],
)  # fmt: skip
def test_malformed_assumptions(refused, config, text):
    line = refused("--hf-config", config, f"--assume={text}")
    name = text.partition("=")[0]
    assert name in line


# -- places ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        ("--chip", "warp9"), ("--phase", "inference"), ("--batch", "0"), ("--assume", "x=1"),
        ("--dtype", "fp32"), ("--seq", 10**13), ("--dtype", "fp8", "--chip", "a100_sxm"),
        ("--exec", "fast"), ("--optimizer", "lion"), ("--hf-config", "nope"),
    ],
    ids=lambda wrong: " ".join(map(str, wrong)),
)  # fmt: skip
def test_bad_input_leaves_no_folder_behind(refused, config, tmp_path, wrong):
    refused("--hf-config", config, *SMALL, *wrong, "--out", tmp_path / "new")


def test_out_is_a_file(refused, config, tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    line = refused("--hf-config", config, *SMALL, "--out", file)
    assert "notes.txt" in line
    line = refused("--hf-config", config, *SMALL, "--out", file / "below")
    assert "notes.txt" in line


def test_out_is_empty(refused, config):
    """`--out "$UNSET"` must not fill the current folder."""
    refused("--hf-config", config, *SMALL, "--phase", "decode", "--out", "")


def test_out_with_a_name_that_no_folder_can_have(refused, config, tmp_path):
    refused("--hf-config", config, *SMALL, "--out", tmp_path / ("x" * 300))
    refused("--hf-config", config, *SMALL, "--out", "a\0b")


# -- strict ----------------------------------------------------------------------------------------


def test_strict_with_an_op_that_has_no_formula(refused, config, monkeypatch):
    monkeypatch.setattr(registry, "_formulas", {})
    line = refused("--hf-config", config, *SMALL, "--strict")
    assert "aten" in line
    assert "--strict" in line
    assert "tracer.cost(" in line


def test_strict_is_satisfied_by_the_reference_model(config):
    results = command_line.document("--hf-config", config, *SMALL, "--strict")["results"]
    assert all("unmodelled" not in result["coverage"] for result in results)


def test_a_model_that_raises_is_one_line(refused, config, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(torch.nn.functional, "embedding", broken)
    line = refused("--hf-config", config, *SMALL)
    assert "first line" in line


def test_a_process_says_the_same(config, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tracer.run", "--hf-config", config, "--chip", "h200_smx"],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("tracer: ")
    assert done.stderr.count("\n") == 1
