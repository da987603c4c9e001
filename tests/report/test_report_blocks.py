"""Blocks refuse what would not add up; numbers read as their units say; marks stay marks."""

import pytest

from tracer.report.blocks import Column, Section, Table, Text, code, placed, section_of, table_of
from tracer.report.markdown import table as as_markdown
from tracer.report.units import UNITS, show

COLUMNS = (Column("name", "name"), Column("bytes", "bytes", "B"), Column("rate", "rate", "FLOP/B"))
ROWS = [("a", 1000, 2.0), ("b", None, 3.0)]


def test_a_total_must_be_the_sum():
    Table("t", "", COLUMNS, ROWS, ("total", 1000, None))
    with pytest.raises(ValueError, match="rows add up to 1000, total says 1001"):
        Table("t", "", COLUMNS, ROWS, ("total", 1001, None))
    # Intensities are not summed: whatever stands there is right.
    Table("t", "", COLUMNS, ROWS, ("total", 1000, 2.5))


@pytest.mark.parametrize(
    ("columns", "rows", "match"),
    [
        ((Column("x", "x", "parsec"),), [(1,)], "parsec"),
        (COLUMNS, [("a", 1)], "3 columns, a row of 2"),
    ],
)
def test_malformed_tables_are_refused(columns, rows, match):
    with pytest.raises(ValueError, match=match):
        Table("t", "", columns, rows)


def test_columns_without_a_value_are_left_out():
    found = table_of("t", "", COLUMNS, [("a", None, 1.0)], ("total", 0, None))
    assert [c.key for c in found.columns] == ["name", "rate"]
    assert found.total == ("total", None)
    assert table_of("t", "", COLUMNS, []) is None


def test_sections_are_numbered_as_they_stand():
    part = Section("x", (Text("t"),))
    items = list(placed((part, Section("y", (), (part, part)), part)))
    assert [item.number for item in items] == ["1", "2", "2.1", "2.2", "3"]
    assert [item.depth for item in items] == [1, 1, 2, 2, 1]
    assert section_of("z", None, None) is None
    assert section_of("z", None, part).sections == (part,)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (767753388556288, "FLOP", "767.8 TFLOP"),
        (70272, "B", "70.27 kB"),
        (0, "B", "0 B"),
        (0.0213, "s", "21.3 ms"),
        (0.5, "share", "50.0%"),
        (-0.25, "delta", "-25.0%"),
        (1234567, "count", "1,234,567"),
        (4096, "size", "4,096"),
        (989.4e12, "FLOP/s", "989.4 TFLOP/s"),
        (97.6, "tokens/s", "98"),
        (0.4567, "tokens/s", "0.457"),
        (None, "s", "-"),
        (-1.2, "signed %", "-1.2"),
    ],
)
def test_numbers_read_as_their_unit(value, unit, text):
    assert show(value, unit) == text


def test_every_unit_says_what_it_is():
    for name, unit in UNITS.items():
        assert unit.meaning, name
        assert not (unit.adds and not unit.number)


def test_names_cannot_be_marks():
    assert code("a`b\nc  d") == "`a'b c d`"
    table = Table("t", "", (Column("m", "m", "module"), Column("x", "x")), [("a|b`<i>", "x | y")])
    last = as_markdown(table).splitlines()[-1]
    assert last == "| `a\\|b'<i>` | x \\| y |"
