"""The sections that wait for data of later stages: absent without, whole with."""

import pytest
from matplotlib.figure import Figure as Canvas
from report_extras import GRID, full_study
from report_studies import sections

from tracer.report.bars import draw_curves
from tracer.report.blocks import Figure, blocks_of, placed
from tracer.report.data import tables_of
from tracer.report.facts import gather
from tracer.report.figures import empty
from tracer.report.findings import conclusions
from tracer.report.sections import build
from tracer.report.sections.sensitivity import knob_effects


@pytest.fixture(scope="module")
def built():
    return build(full_study())


def titles(found):
    return [item.section.title for item in placed(found)]


def test_every_field_brings_its_section_and_none_else(built):
    new = [t for t in titles(built) if t not in titles(sections("deepseek"))]
    assert new == [
        "Weight statistics",
        "Formulas by module",
        "Decode over batch on h200_sxm",
        "Plans and communication",
        "Sensitivity",
    ]
    assert [t for t in titles(built) if t not in new] == titles(sections("deepseek"))


def test_their_tables(built):
    tables = {t.name: t for t in tables_of(built)}
    sweep = tables["sweep_decode_batch_h200_sxm"]
    rows = [dict(zip([c.key for c in sweep.columns], row, strict=True)) for row in sweep.rows]
    eight = next(r for r in rows if r["exec"] == "efficient" and r["batch"] == 8)
    assert eight["intensity"] == pytest.approx(8e9 / 4.008e9)
    assert eight["tokens_per_s"] == pytest.approx(8 / (1.1 * 4.008e9 / 4.8e12))
    crossings = tables["crossings_decode_batch_h200_sxm"].rows
    assert crossings[0][2] == 1030.5
    assert crossings[1][2] is None
    assert crossings[1][-2:] == ("up to 4,096", "no")
    limits = tables["decode_limits"]
    assert [row[-1] for row in limits.rows] == ["no", None]
    plan = tables["plans"].rows[0]
    keys = [c.key for c in tables["plans"].columns]
    assert plan[keys.index("tokens_per_s")] == pytest.approx(3200)  # 64 tokens in 20 ms
    assert plan[keys.index("per_chip")] == pytest.approx(400)  # on 8 chips
    assert tables["weights"].rows[0][3] == 6144
    assert tables["weights"].rows[1][-2] is None  # a vector is not quantised
    assert tables["formulas_decode"].rows[0][3] == "6*B*64*32"
    tight = dict(zip(keys, tables["plans"].rows[1], strict=True))
    assert tight["fits"] == "no"
    assert tight["tokens_per_s"] is tight["per_chip"] is None  # it would be of no use


def test_knobs_are_ranked_by_their_medians_in_numeric_order():
    effects = knob_effects(GRID)
    # Medians over the cache: 2.5, 5, 12.5 ms for 2, 4, 10; over k: 4 and 6 ms.
    assert [(knob, pytest.approx(effect)) for knob, effect, _ in effects] == [
        ("top_k", 4.0), ("cache", 0.5)
    ]  # fmt: skip
    assert effects[0][2] == "2: 2.50 ms, 4: 5.00 ms, 10: 12.5 ms"


def test_the_crossing_reaches_the_conclusions():
    found = {f.rule: f.text for f in conclusions(gather(full_study()))}
    assert found["crossover"] == "Decode reaches the ridge at batch 1,030."


def test_every_figure_can_be_drawn_and_is_labelled(built):
    for block in blocks_of(built):
        if not isinstance(block, Figure):
            continue
        figure = empty(block.size)
        block.draw(figure)
        (axes,) = figure.axes
        assert axes.get_title(), block.name
        if block.name != "parameters":  # a ring has no axes
            assert axes.get_xlabel(), block.name
            if axes.get_yscale() == "log":
                assert axes.get_ylabel(), block.name


def shown(axis):
    """Labels of the ticks within the limits."""
    low, high = sorted(axis.get_view_interval())
    return [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]


def test_labels_of_the_figures_do_not_overlap(built):
    for block in blocks_of(built):
        if not isinstance(block, Figure):
            continue
        figure = empty(block.size)
        block.draw(figure)
        figure.draw_without_rendering()
        (axes,) = figure.axes
        texts = [*shown(axes.xaxis), *shown(axes.yaxis), axes.title, axes.xaxis.label,
                 axes.yaxis.label, *axes.texts]  # fmt: skip
        for legend in (*figure.legends, axes.get_legend()):
            texts += legend.get_texts() if legend is not None else []
        boxes = [(t.get_text(), t.get_window_extent()) for t in texts if t.get_text().strip()]
        whole = figure.bbox
        for number, (text, box) in enumerate(boxes):
            if not box.width:
                continue
            for other, there in boxes[number + 1 :]:
                inside = box.x1 > there.x0 + 1 and there.x1 > box.x0 + 1
                inside = inside and box.y1 > there.y0 + 1 and there.y1 > box.y0 + 1
                assert not inside, (block.name, text, other)
        for text, box in boxes[-3:]:
            assert box.x1 <= whole.x1 + 1, (block.name, text)


def test_marks_of_one_figure_can_be_told_apart():
    """Three crossings in one figure: three styles of line, as the legend has them."""
    canvas = Canvas()
    marks = [("reaches the ridge: 10", 10), ("no longer fits: 20", 20), ("waits for compute: 5", 5)]
    draw_curves(canvas, [("step", [1, 100], [1, 2], "#000000", "-")], ("S", "seconds"), "t", marks)
    (axes,) = canvas.axes
    drawn = {line.get_label(): repr(line._unscaled_dash_pattern) for line in axes.lines}
    assert len({drawn[name] for name, _ in marks}) == 3
