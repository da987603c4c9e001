"""`report.html` in chromium: quiet, fast, readable anywhere, and its numbers are the report's."""

import time

import browser
import pytest
from opened import ready, text, written
from plan_studies import TRAINING, plan_study, report
from report_studies import study

from tracer.report.document import report_of

pytestmark = pytest.mark.skipif(browser.BINARY is None, reason="no chromium")


def test_nothing_goes_wrong_and_nothing_is_asked_for(page):
    assert page.problems == []


def test_odd_names_do_nothing(window, tmp_path):
    path = written(report_of(study("odd")), tmp_path)
    window.problems.clear()
    window.open(path)
    ready(window)
    assert window.problems == []
    assert window.run("document.querySelectorAll('img').length") == 0
    assert "<img src=x onerror=alert(1)>" in text(window, ".tree")


def test_a_page_of_a_plan(window, tmp_path):
    """The same page without the explorer: quiet, tables that sort, any width, light and dark."""
    made = report(*TRAINING)
    path = written(made, tmp_path)
    window.size(1280, 900)
    window.dark(False)
    window.problems.clear()
    window.open(path)
    values = (
        "[...document.querySelectorAll('#table-modules tbody tr')]"
        ".map(r => Number(r.cells[4].dataset.v))"
    )
    before = window.run(values)
    assert before == sorted(before, reverse=True)
    click = "document.querySelectorAll('#table-modules th button')[4].click()"
    window.run(click)
    window.run(click)
    assert window.run(values) == before[::-1]
    assert sum(before) == pytest.approx(plan_study(*TRAINING).detail.compute["kernels"])
    assert window.run("document.querySelectorAll('#data, button.trace, .tree').length") == 0
    assert window.run("document.querySelectorAll('figure svg').length") == 4
    ground = "getComputedStyle(document.body).backgroundColor"
    window.run("document.getElementById('theme').click()")
    assert window.run(ground) == "rgb(20, 23, 29)"
    window.run("localStorage.clear()")
    for width in (390, 768, 1280):
        window.size(width, 800, mobile=width < 500)
        window.run("dispatchEvent(new Event('resize'))")
        assert window.run("document.documentElement.scrollWidth") <= width
    assert window.problems == []


def test_it_paints(page):
    """How soon is for `scripts/bench_report.py`: a busy machine is no fault of the page."""
    paints = "performance.getEntriesByType('paint').length"
    for _ in range(100):
        if page.run(paints):
            return
        time.sleep(0.1)
    raise AssertionError("nothing was painted within 10 s")


@pytest.mark.parametrize(("width", "height"), [(360, 740), (768, 1024), (1280, 900)])
def test_it_fits_any_width(page, width, height):
    page.size(width, height, mobile=width < 500)
    page.run("dispatchEvent(new Event('resize'))")
    assert page.run("document.documentElement.scrollWidth") <= width


def test_a_link_of_the_contents_leads_to_its_section(page):
    """Wherever it is, and from wherever: no section above it may still change its height."""
    for _ in range(100):
        if page.run("document.documentElement.classList.contains('whole')"):
            break
        time.sleep(0.05)
    links = page.run("document.querySelectorAll('nav a').length")
    assert links > 30
    for number in (*range(0, links, 7), links - 1, 3):
        page.run(f"document.querySelectorAll('nav a')[{number}].click()")
        top, least = page.run(
            f"((a) => [document.querySelector(a.hash).getBoundingClientRect().top,"
            " document.documentElement.scrollHeight - innerHeight - scrollY])"
            f"(document.querySelectorAll('nav a')[{number}])"
        )
        assert -1 <= top <= 30 or (top > 0 and least <= 1), number


def test_print_is_light_and_has_no_controls(page):
    page.dark(True)
    page.run("dispatchEvent(new Event('beforeprint'))")
    page.call("Emulation.setEmulatedMedia", media="print",
              features=[{"name": "prefers-color-scheme", "value": "dark"}])  # fmt: skip
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    shown = "[...document.querySelectorAll({})].filter(e => e.offsetParent).length"
    for what in ("input", "select", "nav a", ".csv", "#theme"):
        assert page.run(shown.format(repr(what))) == 0, what
    assert page.run(shown.format("'section table'")) > 20
    # Chromium repeats the head of a table on every page, but paints no button in it.
    heads = "[...document.querySelectorAll('#table-results th')]"
    written = f"{heads}.map(h => getComputedStyle(h, '::before').content.slice(1, -1))"
    assert page.run(written) == page.run(f"{heads}.map(h => h.textContent)")
    page.call("Emulation.setEmulatedMedia", media="", features=[])
    page.run("dispatchEvent(new Event('afterprint'))")
    assert page.run("document.documentElement.dataset.theme") is None


def test_text_can_be_read(page):
    """WCAG AA: 4.5 of what is read on its ground, in light and dark."""
    script = r"""(() => {
      const light = c => { const v = c.match(/[\d.]+/g).slice(0, 3).map(x => x / 255)
        .map(x => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
        return .2126 * v[0] + .7152 * v[1] + .0722 * v[2]; };
      const ground = e => { for (; e; e = e.parentElement) {
        const c = getComputedStyle(e).backgroundColor;
        if (!/, 0\)$|transparent/.test(c)) return c; } };
      const found = {};
      for (const e of document.querySelectorAll("p, td, th, a, code, button, .tag, .muted, h2")) {
        if (!e.offsetParent || !e.textContent.trim()) continue;
        const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
        const ratio = (a + .05) / (b + .05);
        if (ratio < 4.5) found[e.tagName + "." + e.className] = ratio;
      }
      return found;
    })()"""
    for dark in (False, True):
        page.dark(dark)
        assert page.run(script) == {}


def test_light_and_dark(page):
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.run(ground) == "rgb(255, 255, 255)"
    page.dark(True)
    assert page.run(ground) == "rgb(20, 23, 29)"
    page.run("document.getElementById('theme').click()")
    assert page.run(ground) == "rgb(255, 255, 255)"
    page.run("document.getElementById('theme').click()")
    assert page.run(ground) == "rgb(20, 23, 29)"
    page.run("localStorage.clear()")


def test_tables_sort_by_value_not_by_text(page):
    values = (
        "[...document.querySelectorAll('#table-modules tbody tr')]"
        ".map(r => Number(r.cells[3].dataset.v))"
    )
    before = page.run(values)
    click = "document.querySelectorAll('#table-modules th button')[3].click()"
    page.run(click)
    assert page.run(values) == sorted(before, reverse=True)
    page.run(click)
    assert page.run(values) == sorted(before)


def test_points_can_be_filtered_and_hovered(page):
    dots = "document.querySelectorAll('.chart .dot').length"
    before = page.run(dots)
    assert before == 6
    page.run("document.querySelector('.panel .controls input[type=checkbox]').click()")
    assert page.run(dots) == 4  # a phase less: two executions
    page.run(
        "document.querySelector('.chart .dot')"
        ".dispatchEvent(new MouseEvent('mousemove', {clientX: 5, clientY: 5, bubbles: true}))"
    )
    assert page.run("!document.getElementById('tip').hidden")
    assert "FLOP/B" in text(page, "#tip")
    assert "waits for" in text(page, "#tip")


def test_the_timeline_zooms(page):
    pixels = "document.querySelector('canvas').toDataURL()"
    whole = page.run(pixels)
    zoom = "[...document.querySelectorAll('.panel button')].find(b => b.textContent === '+')"
    page.run(f"{zoom}.click()")
    assert page.run(pixels) != whole
    page.run(f"{zoom.replace('+', 'all')}.click()")
    assert page.run(pixels) == whole
