"""A chip file that does not hold together is refused in one line: the file and the key."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from tracer.errors import UserError
from tracer.hardware import ChipError, load_chip
from tracer.hardware.loader import load_directory

GOOD = """name = "Toy"
vendor = "Toys"
generation = "toy"
aliases = ["plaything"]
[peak]
bf16 = { value = 100e12, source = "made up" }
[memory]
capacity = { value = 10e9, source = "made up" }
bandwidth = { value = 2_000_000_000_000, source = "made up" }
[link]
bandwidth = { value = 1e11, source = "made up" }
domain = { value = 8, source = "made up" }
"""


def write(folder: Path, text: str, name: str = "toy.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_file_of_your_own(tmp_path: Path) -> None:
    chip = load_chip(str(write(tmp_path, GOOD)))
    assert (chip.id, chip.name, chip.generation) == ("toy", "Toy", "toy")
    assert chip.ridge("bf16") == 50
    assert (chip.link_bandwidth, chip.link_domain) == (1e11, 8)
    assert chip.nic_bandwidth is chip.l2 is chip.sm_count is chip.clock is chip.tdp is None
    assert (chip.vector, chip.note) == ({}, "")
    assert chip.sources["memory.capacity"] == "made up"
    assert (chip.memory_usable, chip.memory_given) == (None, 10e9)
    more = GOOD.replace("[link]", 'usable = { value = 10.5e9, source = "made up" }\n[link]')
    assert load_chip(write(tmp_path, more, "more.toml")).memory_given == 10.5e9
    assert pickle.loads(pickle.dumps(chip)) == chip
    assert hash(chip) == hash(load_chip(tmp_path / "toy.toml"))


BANDWIDTH = "bandwidth = { value = 2_000_000_000_000, source"
BROKEN = [
    # what to replace, with what, the key that the message must name, a word of the reason
    ('vendor = "Toys"', 'vender = "Toys"', "vender", "did you mean vendor"),
    ('vendor = "Toys"\n', "", "vendor", "missing"),
    ('vendor = "Toys"', "vendor = 3", "vendor", "text is needed, not 3"),
    ('vendor = "Toys"', 'vendor = " "', "vendor", "text is needed"),
    ('["plaything"]', '"plaything"', "aliases", "a list"),
    ('["plaything"]', "[1]", "aliases", "text is needed, not 1"),
    ("[peak]", "[peaks]", "peaks", "did you mean peak?"),
    ('[peak]\nbf16 = { value = 100e12, source = "made up" }\n', "", "peak", "missing"),
    ('bf16 = { value = 100e12, source = "made up" }\n', "", "peak", "at least one of fp64"),
    ("bf16 =", "bf61 =", "peak.bf61", "did you mean bf16"),
    ("bf16 = {", "memory = 1\nbf16 = {", "peak.memory", "unknown key"),
    ('generation = "toy"', 'generation = "toy"\nvector = 1', "vector", "a table is needed"),
    (f'{BANDWIDTH} = "made up" }}\n', "", "memory.bandwidth", "missing"),
    ('domain = { value = 8, source = "made up" }\n', "", "link.domain", "missing"),
    ('{ value = 100e12, source = "made up" }', "100e12", "peak.bf16", "{ value = ..., source"),
    (', source = "made up" }\n[memory]', " }\n[memory]", "peak.bf16.source", "missing"),
    ('source = "made up" }\n[memory]', 'source = "" }\n[memory]', "peak.bf16.source", "text is"),
    ("{ value = 100e12, ", "{ ", "peak.bf16.value", "missing"),
    ("value = 100e12,", "value = 100e12, unit = 1,", "peak.bf16.unit", "unknown key"),
    ("100e12", '"100e12"', "peak.bf16.value", "a number is needed, not '100e12'"),
    ("100e12", "true", "peak.bf16.value", "a number is needed, not True"),
    ("100e12", "0", "peak.bf16.value", "a positive number is needed, not 0"),
    ("100e12", "-1e12", "peak.bf16.value", "a positive number is needed"),
    ("100e12", "nan", "peak.bf16.value", "a positive number is needed, not nan"),
    ("100e12", "inf", "peak.bf16.value", "a positive number is needed, not inf"),
    ("100e12", "1" + "0" * 400, "peak.bf16.value", "a positive number is needed"),
    ("100e12", "989", "peak.bf16.value", "989 is too small"),
    ("value = 8,", "value = 8.0,", "link.domain.value", "a whole number is needed, not 8.0"),
    ("value = 8,", "value = 0,", "link.domain.value", "a positive number is needed, not 0"),
    ("[memory]", 'bf16 = { value = 1e12, source = "x" }\n[memory]', "bf16", "at line 7"),
    ("[link]", "[memory]", "[memory]", "at line 10"),
    ('name = "Toy"', 'name = "Toy', "name", "at line 1"),
]


@pytest.mark.parametrize(("old", "new", "key", "reason"), BROKEN)
def test_broken_file(tmp_path: Path, old: str, new: str, key: str, reason: str) -> None:
    assert GOOD.count(old) == 1, "the case must break one thing"
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ChipError) as caught:
        load_chip(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: {key}: ")
    assert reason in message
    assert "\n" not in message


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ChipError, match=r"absent\.toml: No such file"):
        load_chip(str(tmp_path / "absent.toml"))
    (tmp_path / "latin.toml").write_bytes(b'name = "caf\xe9"')
    with pytest.raises(ChipError, match=r"latin\.toml: not UTF-8"):
        load_chip(tmp_path / "latin.toml")
    with pytest.raises(ChipError, match=r"huge\.toml"):
        load_chip(write(tmp_path, "name = 1" + "0" * 5000, "huge.toml"))


@pytest.mark.parametrize(
    ("name", "alias", "message"),
    [
        ("other.toml", "Play-Thing", "toy.toml: aliases: 'plaything' is taken by other.toml"),
        ("zoo.toml", "TOY", "zoo.toml: aliases: 'TOY' is taken by toy.toml"),
        ("to_y.toml", "x", "toy.toml: id: 'toy' is taken by to_y.toml"),
    ],
)
def test_two_files_with_one_name(tmp_path: Path, name: str, alias: str, message: str) -> None:
    write(tmp_path, GOOD)
    write(tmp_path, GOOD.replace("plaything", alias), name)
    with pytest.raises(ChipError) as caught:
        load_directory(tmp_path)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "name", ["h200_sxm", "H200-SXM", "h200 sxm", "H200", "H200SXM", "H200_SXM_FP8", "h200-sxm5"]
)
def test_names_fold(name: str) -> None:
    assert load_chip(name).id == "h200_sxm"


@pytest.mark.parametrize(("given", "near"), [("h20_sxn", "h200_sxm"), ("mi300", "mi300x")])
def test_unknown_chip(given: str, near: str) -> None:
    with pytest.raises(UserError) as caught:
        load_chip(given)
    assert str(caught.value).startswith(f"no chip '{given}'; did you mean ")
    assert near in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_precision_that_the_chip_lacks() -> None:
    with pytest.raises(ChipError) as caught:
        load_chip("a100_sxm").ridge("fp8")
    assert str(caught.value) == (
        "NVIDIA A100 SXM4 80GB (a100_sxm) has no fp8 matrix peak; "
        "it has fp64, tf32, bf16, fp16, int8"
    )
    with pytest.raises(ChipError, match=r"has no fp32 matrix peak.*vector units alone: fp32"):
        load_chip("h100_sxm").peak_for("fp32")
