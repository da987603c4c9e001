"""One chromium for the tests of the page, and the page of a study that has everything."""

import browser
import pytest
from opened import ready
from report_extras import full_study

from tracer.report.html import render
from tracer.report.pictures import draw_all
from tracer.report.sections import build


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    made = build(full_study())
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(full_study(), made, {p.name: p for p in draw_all(made)}))
    return path


@pytest.fixture(scope="module")
def window():
    with browser.Page() as page:
        yield page


@pytest.fixture
def page(window, file):
    window.size(1280, 900)
    window.dark(False)
    window.problems.clear()
    window.open(file)
    ready(window)
    return window
