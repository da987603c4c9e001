"""What tests do with a page that chromium has open."""

from __future__ import annotations

import time
from dataclasses import replace

from tracer.report.blocks import Section, Widget
from tracer.report.document import report_of
from tracer.report.html import render
from tracer.report.pictures import Pictures


def written(report, folder):
    """The page of a report, as a file."""
    path = folder / "report.html"
    path.write_text(render(report, {p.name: p for p in Pictures(report.sections)}))
    return path


def explorer_of(study, folder):
    """The page of a study with nothing but the explorer."""
    only = (Section("Explorer", (Widget("explorer", ""),)),)
    return written(replace(report_of(study), sections=only), folder)


def ready(page):
    for _ in range(100):
        if page.run("document.querySelectorAll('.tree tbody tr').length") > 0:
            return
        time.sleep(0.05)
    raise AssertionError("the explorer did not come")


def text(page, selector):
    return page.run(f"document.querySelector({selector!r}).textContent")


def choose(page, number):
    page.run(
        f"(() => {{ const s = document.getElementById('step'); s.value = {number};"
        " s.dispatchEvent(new Event('change')); })()"
    )
