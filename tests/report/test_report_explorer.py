"""The explorer of `report.html`: its numbers by hand, and what is behind them."""

import re
from dataclasses import replace

import browser
import pytest
from opened import choose, explorer_of, ready, text
from report_extras import CLOSED, full_study
from report_studies import formulas, study

from tracer.report.text import si

pytestmark = pytest.mark.skipif(browser.BINARY is None, reason="no chromium")


def test_the_tree_shows_each_step(page):
    for number, step in enumerate(full_study().steps):
        choose(page, number)
        cells = page.run(
            "[...document.querySelectorAll('.tree tbody tr')[0].cells].map(c => c.textContent)"
        )
        assert cells[2] == f"{full_study().inventory.parameters:,}"
        flops = cells[3].split()
        scale = {"kFLOP": 1e3, "MFLOP": 1e6, "GFLOP": 1e9}[flops[1]]
        assert float(flops[0]) * scale == pytest.approx(step.cost.total_flops, rel=1e-3)
        assert cells[8].startswith("100.0%")


def test_opening_a_module_and_what_is_behind_it(page):
    rows = "document.querySelectorAll('.tree tbody tr').length"
    before = page.run(rows)
    page.run("[...document.querySelectorAll('.tree button.twist')].at(-1).click()")
    assert page.run(rows) > before
    page.run(
        "[...document.querySelectorAll('.tree button.pick')]"
        ".find(b => b.textContent === 'lm_head').click()"
    )
    panels = "[...document.querySelectorAll('.panel')].at(-1).textContent"
    found = page.run(panels)
    assert "lm_head in prefill, efficient" in found
    # 2 sequences of 32 tokens, 64 wide, 96 words: 2 x 64 x 64 x 96 FLOPs.
    assert f"{2 * 64 * 64 * 96 / 1e3:.1f} kFLOP" in found
    assert "2·M·K·N" in found
    assert "tracer/cost/formulas/matmul.py:" in found
    assert "tracer/models/linear.py:" in found


@pytest.mark.parametrize(
    ("name", "module", "flops", "formula", "source"),
    [
        # 2 sequences of 32 tokens, 32 wide, 96 words.
        ("llama", "lm_head", 2 * 64 * 32 * 96, "2·M·K·N", "nn/modules/linear.py:"),
        # 64 tokens x 2 experts, 32 wide, gate and up of 64 each, and back; all 4 layers alike.
        ("gpt_oss", "experts", 4 * 2 * 64 * 2 * 32 * 3 * 64, "rows", "modeling_gpt_oss.py:"),
        # 2 images, 4 x 4 patches of 3 x 8 x 8, 32 wide.
        ("vit", "projection", 2 * 2 * 16 * 32 * 3 * 64, "C_out", "nn/modules/conv.py:"),
        # 8 images, 16 x 16 positions, 16 channels of 3 x 3 x 3.
        ("convnet", "stem", 2 * 8 * 256 * 16 * 27, "C_out", "nn/modules/conv.py:"),
        # 2 x 32 tokens, the 4 x (16 + 8) heads' queries from a rank of 24, in 6 layers.
        ("deepseek", "q_b_proj", 6 * 2 * 64 * 24 * 96, "2·M·K·N", "tracer/models/linear.py:"),
    ],
)
def test_what_is_behind_an_op_of_each_model(window, tmp_path, name, module, flops, formula, source):
    """The number by hand, the formula that gave it, and the line of the module."""
    path = explorer_of(study(name), tmp_path)
    window.problems.clear()
    window.open(path)
    ready(window)
    choices = "[...document.querySelectorAll('#step option')].map(o => o.textContent)"
    steps = window.run(choices)
    choose(window, next(i for i, s in enumerate(steps)
                        if s in ("prefill, efficient", "forward, efficient")))  # fmt: skip
    for _ in range(12):  # open every arrow, level by level
        window.run(
            "[...document.querySelectorAll('.tree button.twist')]"
            ".filter(b => b.getAttribute('aria-expanded') === 'false').forEach(b => b.click())"
        )
    count = window.run(
        "(() => { const all = [...document.querySelectorAll('.tree button.pick')]"
        f".filter(b => b.textContent === {module!r});"
        " window.picked = []; for (const b of all) { b.click(); "
        "window.picked.push([...document.querySelectorAll('.panel')].at(-1).textContent); }"
        " return all.length; })()"
    )
    assert count
    found = window.run("window.picked")
    units = {"FLOP": 1, "kFLOP": 1e3, "MFLOP": 1e6, "GFLOP": 1e9}
    shown = 0.0
    for text_ in found:
        number, unit = re.search(r"efficient: ([\d.,]+) (\w*FLOP)", text_).groups()
        shown += float(number.replace(",", "")) * units[unit]
        assert formula in text_
        assert source in text_
    assert shown == pytest.approx(flops, rel=1e-3)
    assert window.problems == []


def test_sliders_price_fp32_at_its_own_rate(window, tmp_path):
    """66.9 TFLOP/s, not the highest rate that the chip has for anything."""
    whole = replace(study("convnet"), closed_forms=formulas("convnet").closed_forms,
                    closed_ranges=formulas("convnet").closed_ranges)  # fmt: skip
    path = explorer_of(whole, tmp_path)
    window.problems.clear()
    window.open(path)
    ready(window)
    panel = "[...document.querySelectorAll('.panel')].find(p => p.textContent.startsWith('Closed'))"
    cells = window.run(f"[...{panel}.querySelectorAll('td')].map(c => c.textContent)")
    # 8 images: the stem's 8 x 256 positions of 16 x 27, the head's 8 rows of 16 x 10.
    flops = 2 * (8 * 256 * 16 * 27 + 8 * 16 * 10)
    assert cells[0] == f"{flops / 1e6:.3f} MFLOP"
    assert cells[3] == f"{flops / 66.9e12 * 1e9:.1f} ns"
    chosen = f"{panel}.querySelector('select').selectedOptions[0].textContent"
    assert window.run(chosen) == "forward, efficient"
    assert "They cover" not in window.run(f"{panel}.textContent")  # all that there are
    assert "fp32 66.90 TFLOP/s" in window.run("document.querySelector('.chart').textContent")
    assert window.problems == []


def test_the_keyboard_keeps_its_place_in_the_tree(page):
    twist = "[...document.querySelectorAll('.tree button.twist')].at(-1)"
    page.run(f"{twist}.focus()")
    where = page.run("document.activeElement.dataset.path")
    assert page.run("document.activeElement.getAttribute('aria-expanded')") == "false"
    page.run("document.activeElement.click()")
    assert page.run("document.activeElement.dataset.path") == where
    assert page.run("document.activeElement.getAttribute('aria-expanded')") == "true"


def test_a_name_in_a_table_leads_to_its_ops(page):
    page.run("document.querySelector('#table-modules_decode_efficient button.trace').click()")
    name = text(page, "#table-modules_decode_efficient button.trace")
    found = page.run("[...document.querySelectorAll('.panel')].at(-1).textContent")
    assert f"{name} in decode, efficient" in found


def test_closed_forms_are_evaluated_as_python_does(page):
    step = next(s for s in full_study().steps if s.workload.phase == "decode")
    names = {"B": step.workload.batch, "S": step.workload.seq, "L": step.workload.context}
    from math import ceil

    flops = sum(f.times * eval(f.flops, {"ceil": ceil}, names) for f in CLOSED)
    moved = sum(f.times * sum(eval(e, {}, names) for e in f.bytes.values()) for f in CLOSED)
    panel = (
        "[...document.querySelectorAll('.panel')]"
        ".find(p => p.textContent.startsWith('Closed forms'))"
    )
    found = page.run(f"[...{panel}.querySelectorAll('td')].map(c => c.textContent)")
    assert found[0].split()[1] == "kFLOP"
    assert float(found[0].split()[0]) == pytest.approx(flops / 1e3, rel=1e-3)
    assert float(found[1].split()[0]) == pytest.approx(moved / 1e3, rel=1e-3)
    page.run(
        f"(() => {{ const s = {panel}.querySelector('input'); s.value = 10;"
        " s.dispatchEvent(new Event('input')); }})()".replace("}})()", "})()")
    )
    names["B"] = 1024
    flops = sum(f.times * eval(f.flops, {"ceil": ceil}, names) for f in CLOSED)
    after = page.run(f"[...{panel}.querySelectorAll('td')].map(c => c.textContent)")
    assert float(after[0].split()[0]) == pytest.approx(flops / 1e6, rel=1e-3)
    assert after[0].split()[1] == "MFLOP"


def test_sliders_over_the_traces_formulas_are_the_tables_numbers(window, tmp_path):
    """At the traced sizes, at others that were traced apart, and not where nothing holds."""
    found = formulas("deepseek")
    whole = replace(study("deepseek"), closed_forms=found.closed_forms,
                    closed_ranges=found.closed_ranges)  # fmt: skip
    path = explorer_of(whole, tmp_path)
    window.problems.clear()
    window.open(path)
    ready(window)
    panel = "[...document.querySelectorAll('.panel')].find(p => p.textContent.startsWith('Closed'))"
    shown = f"[...{panel}.querySelectorAll('td')].map(c => c.textContent)"
    choices = window.run(f"[...{panel}.querySelector('select').options].map(o => o.textContent)")
    covered = {(f.phase, f.execution) for f in found.closed_forms}
    assert {("training", "efficient"), ("prefill", "naive"), ("decode", "naive")} < covered
    assert choices == [f"{s.workload.phase}, {s.ledger.execution}" for s in whole.steps
                       if (s.workload.phase, s.ledger.execution) in covered]  # fmt: skip

    def slide(name, exponent):
        window.run(
            f"(() => {{ const s = {panel}.querySelector('input[aria-label={name}]');"
            f" s.value = {exponent}; s.dispatchEvent(new Event('input')); }})()"
        )

    steps = {batch: study("deepseek", "--batch", batch).steps for batch in ("2", "8")}
    for number, choice in enumerate(choices):
        window.run(
            f"(() => {{ const s = {panel}.querySelector('select'); s.value = {number};"
            " s.dispatchEvent(new Event('change')); })()"
        )
        sliders = f"[...{panel}.querySelectorAll('input')].filter(s => s.offsetParent)"
        other = "L" if choice.startswith("decode") else "S"
        assert window.run(f"{sliders}.map(s => s.ariaLabel)") == ["B", other]
        for batch, exponent in (("2", 1), ("8", 3)):
            slide("B", exponent)
            (step,) = (s for s in steps[batch]
                       if f"{s.workload.phase}, {s.ledger.execution}" == choice)  # fmt: skip
            cells = window.run(shown)
            assert cells[0] == f"{si(step.cost.total_flops)}FLOP"
            assert cells[1] == f"{si(step.cost.total_bytes)}B"
            for cell, value in zip(cells[3:6], (step.times.compute, step.times.memory,
                                                step.times.bound), strict=True):  # fmt: skip
                amount, unit = cell.split()
                scale = {"s": 1, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}[unit]
                assert float(amount) * scale == pytest.approx(value, rel=5e-3)
            held, unit = cells[8].split()  # 12.315 MB: the two languages round a half differently
            scale = {"kB": 1e3, "MB": 1e6}[unit]
            assert float(held) * scale == pytest.approx(step.memory.total, rel=5e-4)
            assert cells[9] == "yes"
        slide("B", 0)
        assert window.run(f"{panel}.textContent").endswith("traced for B >= 2.")
        slide("B", 1)
    assert window.problems == []
