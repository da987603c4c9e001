"""Work in another process: its answer, its error, its silence."""

import operator
import os

import pytest

from tracer.beside import beside


def test_answers_come_back():
    with beside(operator.add, 2, 3) as answer:
        assert answer() == 5


def test_errors_come_back():
    with beside(operator.truediv, 1, 0) as answer, pytest.raises(ZeroDivisionError):
        answer()


def test_a_process_that_dies_is_an_error_and_no_wait():
    with beside(os._exit, 3) as answer, pytest.raises(RuntimeError, match="ended early"):
        answer()
