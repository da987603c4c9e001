"""`report.html` as text: one file, everything escaped, and data that sum to the ledger's."""

import json
import re
from html.parser import HTMLParser

import pytest
from report_extras import full_study
from report_studies import study

from tracer.report.blocks import Diagram, Node
from tracer.report.document import report_of
from tracer.report.flow import draw
from tracer.report.html import embedded, inline, render
from tracer.report.page import payload
from tracer.report.pictures import Pictures
from tracer.report.provenance import origin_of
from tracer.report.sections import build


class Reader(HTMLParser):
    """Ids, addresses, and whether every element is closed."""

    VOID = frozenset("meta link br hr img input".split())

    def __init__(self):
        super().__init__()
        self.ids, self.links, self.tags, self.open = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href"):
                self.links.append(value)
            assert not name.startswith("on"), (tag, name)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page_of(name):
    made = report_of(study(name))
    return render(made, {p.name: p for p in Pictures(made.sections)})


@pytest.fixture(scope="module")
def page():
    return page_of("deepseek")


@pytest.fixture(scope="module")
def odd():
    return page_of("odd")


def read(page):
    reader = Reader()
    # A script's content is no HTML; the parser knows that of <script> elements.
    reader.feed(page)
    assert reader.open == []
    return reader


def test_it_is_one_file_that_asks_for_nothing(page):
    reader = read(page)
    for link in reader.links:
        assert link.startswith(("#", "data:,", "tables/")), link
    assert not re.search(r"url\((?!#)", page)
    assert "@import" not in page
    # Addresses are names of XML, not requests.
    for address in re.findall(r"https?://[^\s\"'<]+", page):
        assert address.startswith("http://www.w3.org/"), address


def test_ids_are_unique_and_every_link_has_its_place(page):
    reader = read(page)
    assert len(set(reader.ids)) == len(reader.ids)
    local = {link[1:] for link in reader.links if link.startswith("#")}
    assert local <= set(reader.ids)


def test_names_cannot_break_out(odd):
    reader = read(odd)
    assert "&lt;img src=x onerror=alert(1)&gt;" in odd
    assert not [attributes for tag, attributes in reader.tags if attributes.get("src") == "x"]
    data = re.search(r'<script id="data" type="application/json">(.*?)</script>', odd, re.S)[1]
    assert "<" not in data
    assert any("onerror" in text for text in json.loads(data)["strings"])


def test_embedded_json_survives_any_text():
    nasty = {"a": "</script><!--", "b": "\u2028\u2029", "c": [1.5, None]}
    text = embedded(nasty)
    assert "<" not in text
    assert json.loads(text) == nasty
    with pytest.raises(ValueError, match="JSON"):
        embedded({"a": float("nan")})


def test_marks_become_elements_and_nothing_else_does():
    assert inline("**a** & `x<y`") == "<b>a</b> &amp; <code>x&lt;y</code>"
    assert inline("<b>no</b>") == "&lt;b&gt;no&lt;/b&gt;"
    nodes = (Node("a", ("<svg>",)), Node("b", ("x",)), Node("c", ("y",)))
    svg = draw(Diagram("d", '"quoted" <c>', nodes, (("a", "b"), ("b", "c"), ("a", "c"))))
    assert "<svg>" not in svg[4:]
    assert svg.count("<path marker-end") == 3


@pytest.mark.parametrize("name", ["deepseek", "vit", "odd", "nothing"])
def test_the_data_are_those_of_the_ledgers(name):
    found = payload(study(name))
    json.dumps(found, allow_nan=False)
    assert len(found["steps"]) == len(study(name).steps)
    for step, there in zip(found["steps"], study(name).steps, strict=True):
        ledger = found["ledgers"][step["ledger"]]
        parts = ledger["parts"]
        assert sum(part[8] for part in parts) == there.cost.total_flops
        assert sum(part[9] for part in parts) == there.cost.vector_flops
        roles = there.cost.bytes_by_role
        for number, role in enumerate(found["roles"]):
            assert sum(part[10 + number] for part in parts) == roles[role]
        assert len(step["seconds"]) == len(step["waits"]) == len(ledger["kernels"])
        assert sum(step["seconds"]) == pytest.approx(there.times.device, rel=1e-5)
        modules = {found["strings"][part[1]] for part in parts}
        assert modules <= found["modules"].keys()
    whole = study(name).inventory.parameters
    assert sum(found["parameters"].values()) == whole


def test_a_large_trace_is_merged_and_loses_nothing(monkeypatch):
    from tracer.report import page as module

    monkeypatch.setattr(module, "MOST", 10)
    found = payload(study("llama"))
    assert found["merged"]
    names = {found["strings"][part[1]] for ledger in found["ledgers"] for part in ledger["parts"]}
    assert "model.layers.*.mlp.up_proj" in names
    for step, there in zip(found["steps"], study("llama").steps, strict=True):
        parts = found["ledgers"][step["ledger"]]["parts"]
        assert sum(part[8] for part in parts) == there.cost.total_flops


def test_every_number_has_its_formula_and_source():
    found = payload(study("deepseek"))
    for name, text, place in found["formulas"]:
        assert name
        assert text
        assert re.fullmatch(r"tracer/cost/formulas/\w+\.py:\d+", place), (name, place)
    kinds = {kind for kind, _ in found["modules"].values()}
    assert found["sources"]["MLA"].startswith("tracer/models/attention.py:")
    assert {"MLA", "Experts", "RMSNorm"} <= kinds & found["sources"].keys()
    step = study("deepseek").steps[0]
    product = next(op for op in step.trace.ops if op.overload_packet == "aten.mm")
    assert origin_of(product, step.trace).text.startswith("2·M·K·N")


def test_closed_forms_travel_as_they_are():
    whole = full_study()
    found = payload(whole)["closed_forms"]
    assert [form["flops"] for form in found] == [form.flops for form in whole.closed_forms]
    assert found[1]["bytes"] == {"kv": "2*B*L*8", "weights": "0"}
    assert payload(study("deepseek"))["closed_forms"] == []


def test_it_is_small(page):
    assert len(page.encode()) < 2e6
    figures = len(re.findall("<figure", page))
    assert figures == len(re.findall("</figure>", page)) > 10
    made = build(study("deepseek"))
    assert len(re.findall("<table>", page)) == sum(
        type(block).__name__ == "Table" for part in made for block in _all(part)
    )


def _all(section):
    yield from section.blocks
    for below in section.sections:
        yield from _all(below)
