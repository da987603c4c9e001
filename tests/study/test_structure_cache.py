"""The cache of closed forms: whole or nothing, and never a wrong one."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from study_models import MODEL, closed, model_of

from tracer.errors import UserError
from tracer.study import structure as structures
from tracer.study.closed import Closed
from tracer.study.structure import Cache, Structure, closed_form, config_value

SMALL = Structure(MODEL, "decode", layers=4)


def test_plain_and_back():
    step = closed()
    again = Closed.from_plain(json.loads(json.dumps(step.to_plain())))
    assert again.rows == step.rows
    assert (again.memory, again.experts, again.tokens) == (step.memory, step.experts, step.tokens)
    assert again.scope.conditions() == step.scope.conditions()
    point = {"B": 33, "L": 5000}
    assert model_of(again).seconds(point) == model_of(step).seconds(point)


def test_traced_once(tmp_path, monkeypatch):
    cache = Cache(tmp_path)
    first = closed_form(SMALL, cache)
    monkeypatch.setattr(structures, "_trace", lambda *_: pytest.fail("traced again"))
    assert closed_form(SMALL, cache).rows == first.rows
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


@pytest.mark.parametrize("damage", ["", "{", '{"key": 1}', "[]", "null", "\\x00"])
def test_a_damaged_file_is_as_good_as_none(tmp_path, monkeypatch, damage):
    cache = Cache(tmp_path)
    cache.put("k", closed())
    assert cache.get("k") is not None
    (tmp_path / "k.json").write_text(damage)
    assert cache.get("k") is None
    document = {"key": "k", **closed().to_plain()}
    document["rows"] = document["rows"][0]
    (tmp_path / "k.json").write_text(json.dumps(document))
    assert cache.get("k") is None
    (tmp_path / "k.json").write_text(json.dumps({"key": "other", **closed().to_plain()}))
    assert cache.get("k") is None


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file")
    cache.put("k", closed())
    assert cache.get("k") is None


def test_everything_that_matters_is_in_the_key(monkeypatch):
    config = {"model_type": "x", "hidden_size": 8}
    base = structures._digest(SMALL, config)
    others = [
        structures._digest(replace(SMALL, **change), config)
        for change in ({"phase": "prefill"}, {"dtype": "fp8"}, {"layers": 5}, {"batch": 1},
                       {"execution": "naive"}, {"changes": (("hidden_size", 16),)})
    ]  # fmt: skip
    others.append(structures._digest(SMALL, {**config, "hidden_size": 9}))
    monkeypatch.setattr(structures, "_versions", lambda: {"torch": "0"})
    others.append(structures._digest(SMALL, config))
    monkeypatch.setattr(structures, "_sources", lambda: "other code")
    others.append(structures._digest(SMALL, config))
    assert len({base, *others}) == len(others) + 1


def test_a_cached_form_needs_no_torch(tmp_path):
    closed_form(SMALL, Cache(tmp_path))
    code = (
        "import sys; from pathlib import Path; from tracer.study.structure import *;"
        f"cache = Cache(Path({str(tmp_path)!r}));"
        f"step = closed_form(Structure({MODEL!r}, 'decode', layers=4), cache);"
        "from tracer.machine.symbolic import StepModel; from tracer.hardware import load_chip;"
        "StepModel(step.rows, load_chip('h200_sxm'), None, step.scope).seconds({'B': 8});"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_user_s_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Cache.of_user().folder == tmp_path / "tracer" / "closed"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the specification
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Cache.of_user().folder == tmp_path / ".cache" / "tracer" / "closed"


def test_structural_knobs():
    assert config_value(MODEL, "top_k") == ("num_experts_per_tok", 8)
    assert config_value(MODEL, "rank") == ("kv_lora_rank", 512)
    with pytest.raises(UserError, match="did you mean top_k"):
        config_value(MODEL, "topk")
    with pytest.raises(UserError, match="no config"):
        config_value("some/model", "hidden")
