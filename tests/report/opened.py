"""What tests do with a page that chromium has open."""

from __future__ import annotations

import time


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
