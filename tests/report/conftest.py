"""One chromium for the tests of the page, and the page of a study that has everything."""

import browser
import pytest
from opened import ready, written
from report_extras import full_study

from tracer.report.document import report_of


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return written(report_of(full_study()), tmp_path_factory.mktemp("page"))


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
