"""Work in another process: its answers, its errors, its silence, and figures that it draws."""

import io
import operator
import os
import time

import pytest
from report_studies import sections

from tracer.beside import beside
from tracer.report.blocks import Figure, blocks_of
from tracer.report.figures import empty, plain_style
from tracer.report.pictures import Pictures, draw, warm


def test_answers_come_back_in_order():
    with beside() as other:
        other.start(operator.add, 2, 3)
        other.start(operator.mul, 2, 3)
        assert [other.answer(), other.answer()] == [5, 6]


def test_errors_come_back_and_end_nothing():
    with beside() as other:
        other.start(operator.truediv, 1, 0)
        other.start(operator.add, 2, 3)
        with pytest.raises(ZeroDivisionError):
            other.answer()
        assert other.answer() == 5


def test_a_process_that_dies_is_an_error_and_no_wait():
    with beside() as other:
        other.start(os._exit, 3)
        with pytest.raises(RuntimeError, match="ended early"):
            other.answer()
        with pytest.raises(RuntimeError, match="ended early"):
            other.start(operator.add, 2, 3)


def test_ready_says_whether_an_answer_waits():
    with beside() as other:
        assert not other.ready
        other.start(time.sleep, 0)
        while not other.ready:
            time.sleep(0.01)
        assert other.answer() is None
        assert not other.ready


def test_what_is_done_meanwhile_is_done_once_and_costs_no_answer():
    with beside(meanwhile=_count) as other:
        for _ in range(3):
            other.start(_counted)
            assert other.answer() <= 1
            time.sleep(0.05)
        other.start(_counted)
        assert other.answer() == 1


_calls: list[int] = []


def _count():
    _calls.append(1)


def _counted():
    return len(_calls)


# -- figures ---------------------------------------------------------------------------------------


def _by_name(pictures):
    found = list(pictures)
    assert len({p.name for p in found}) == len(found)
    return {p.name: p for p in found}


@pytest.fixture(scope="module")
def made():
    return sections("deepseek")


@pytest.fixture(scope="module")
def alone(made):
    return _by_name(Pictures(made))


def test_figures_drawn_by_two_are_those_drawn_by_one(made, alone):
    assert alone.keys() == {b.name for b in blocks_of(made) if isinstance(b, Figure)}
    with beside(meanwhile=warm) as other:
        assert _by_name(Pictures(made, other)) == alone


class Helper:
    """In this process: draws at once, and dies after `lives` figures."""

    def __init__(self, lives):
        self.lives, self.waiting, self.drawn = lives, [], 0

    def start(self, work, *args):
        if not self.lives:
            raise RuntimeError("ended early")
        self.waiting.append(work(*args))

    @property
    def ready(self):
        return True

    def answer(self):
        if not self.lives:
            raise RuntimeError("ended early")
        self.lives -= 1
        self.drawn += 1
        return self.waiting.pop(0)


@pytest.mark.parametrize("lives", [0, 1, 2])
def test_a_helper_that_dies_costs_only_its_help(made, alone, lives):
    helper = Helper(lives)
    assert _by_name(Pictures(made, helper)) == alone
    assert helper.drawn == lives


def test_a_picture_is_what_savefig_makes_of_the_figure(made):
    block = next(b for b in blocks_of(made) if isinstance(b, Figure))
    with plain_style(**{"svg.fonttype": "none", "svg.hashsalt": "tracer", "font.size": 9}):
        figure = empty(block.size)
        block.draw(figure)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        svg, png = io.StringIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
        figure.savefig(png, format="png", dpi=130)
    assert draw(block) == (block.name, svg.getvalue(), png.getvalue())
