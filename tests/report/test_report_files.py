"""A second report into one folder: nothing of the first misleads, and nobody's file is gone."""

from __future__ import annotations

import hashlib
import json

import pytest

from tracer.report.blocks import Column, Section, Text, table_of
from tracer.report.files import write
from tracer.report.report import Report
from tracer.report.written import MANIFEST


def report(*names, files=None):
    """With a table of each name."""
    column = (Column("a", "a", "count"),)
    blocks = [table_of(name, "Some.", column, [(1,)]) for name in names]
    more = {name: (lambda text=text: text) for name, text in (files or {}).items()}
    return Report("T", "L", "c", (Section("S", (Text("x"), *blocks)),), {}, more)


def there(out):
    return {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}


def test_files_of_the_first_report_alone_are_gone(tmp_path):
    write(report("one", "both", files={"ops.csv": "x"}), tmp_path)
    found = write(report("both", "two"), tmp_path)
    assert there(tmp_path) == {
        "report.json", "report.md", "report.html", "tables/both.csv", "tables/two.csv", MANIFEST,
    }  # fmt: skip
    assert {p.name for p in found.removed} == {"ops.csv", "one.csv"}
    assert found.lines()[-1] == "removed 2 files of an earlier report (ops.csv, tables/one.csv)"
    assert not write(report("both", "two"), tmp_path).removed


def test_what_somebody_put_there_or_changed_stays(tmp_path):
    write(report("one", "changed"), tmp_path)
    mine = {"notes.txt", "tables/mine.csv", "figures/mine.png", "tables/changed.csv"}
    for name in mine:
        (tmp_path / name).write_text("of a user")
    write(report("two"), tmp_path)
    assert mine <= there(tmp_path)
    assert "tables/one.csv" not in there(tmp_path)
    write(report("three"), tmp_path)
    assert mine <= there(tmp_path)


def test_a_folder_that_no_report_of_ours_wrote_is_left_alone(tmp_path):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "one.csv").write_text("a\n1\n")
    (tmp_path / MANIFEST).write_text('["no list of ours"]')
    assert not write(report("two"), tmp_path).removed
    assert "tables/one.csv" in there(tmp_path)


def test_a_report_that_fails_removes_nothing_and_the_next_one_does(tmp_path):
    write(report("one"), tmp_path)

    def fail():
        raise RuntimeError("no")

    broken = report("two")
    broken = Report("T", "L", "c", broken.sections, {}, {"a.csv": lambda: "a", "b.csv": fail})
    with pytest.raises(RuntimeError):
        write(broken, tmp_path)
    assert {"tables/one.csv", "a.csv", "report.html"} <= there(tmp_path)
    assert not [name for name in there(tmp_path) if ".part" in name]
    write(report("three"), tmp_path)
    assert there(tmp_path) & {"tables/one.csv", "a.csv"} == set()


@pytest.mark.parametrize("name", ["../outside.csv", "/outside.csv", "link.csv", "linked/x.csv"])
def test_no_list_reaches_out_of_the_folder(tmp_path, name):
    out, other = tmp_path / "out", tmp_path / "other"
    write(report("one"), out)
    other.mkdir()
    for path in (tmp_path / "outside.csv", other / "x.csv"):
        path.write_text("kept")
    (out / "link.csv").symlink_to(tmp_path / "outside.csv")
    (out / "linked").symlink_to(other)
    listed = json.loads((out / MANIFEST).read_text())
    listed["files"][name] = hashlib.sha256(b"kept").hexdigest()
    (out / MANIFEST).write_text(json.dumps(listed))
    assert write(report("one"), out).removed == []
    assert (tmp_path / "outside.csv").exists() and (other / "x.csv").exists()
    assert (out / "link.csv").is_symlink()
