"""A model with states in place of a cache: nothing is said of keys, or beyond its formulas."""

from report_studies import formulas, sections, study

from tracer.report.blocks import Text, blocks_of
from tracer.report.categories import PRODUCTS, Categories
from tracer.report.data import tables_of
from tracer.report.facts import masks
from tracer.report.fingerprint import fingerprint

SHORT = ("--seq", "8", "--context", "12")


def test_formulas_of_one_batch_are_not_asked_about_all():
    """The states were made for a batch of 2: no formula holds for more, and no proof goes on."""
    found = formulas("mamba", *SHORT)
    (sweep,) = (s for s in found.sweeps if s.phase == "decode")
    largest = max(point.value for point in sweep.points)
    assert {c.searched_to for c in sweep.crossings} <= {largest}
    assert found.decode_limits is None
    assert found.context_limits is None
    # Where formulas hold throughout, the proof still does.
    (other,) = (s for s in formulas("llama").sweeps if s.phase == "decode")
    assert any(c.searched_to is None for c in other.crossings)
    assert formulas("llama").decode_limits and formulas("llama").context_limits


def test_no_causal_attention_and_no_convolutions():
    mine = study("mamba", *SHORT)
    assert not masks(mine)
    text = " ".join(b.text for b in blocks_of(sections("mamba", *SHORT)) if isinstance(b, Text))
    assert "causal" not in text
    # The mixer convolves, but its time is that of its products and its scan.
    assert Categories(mine.steps[0].trace).of("backbone.layers.0.mixer") == PRODUCTS


def test_the_cache_of_a_hybrid_is_that_of_its_attention():
    """2 keys and 2 values of 8 a token, of 4 heads; a state of 64 x 8 in the layer before."""
    told = dict(fingerprint(study("jamba", "--phase", "decode", "--exec", "efficient", *SHORT)))
    assert told["KV cache of a layer"] == (
        "32 elements a token of 64 (2 key-value heads, 2 queries share each)"
    )


def test_nothing_grows_with_the_context():
    tables = {t.name: t for t in tables_of(sections("mamba", *SHORT))}
    limits = [row[0] for row in tables["limits"].rows]
    assert "FLOP/B of decode as the context grows" not in limits
    assert not any("tokens of cache" in name for name in limits)
    kept = dict(row[:2] for row in tables["fingerprint"].rows)["cache of a sequence"]
    assert kept.startswith("a sequence of 12 tokens keeps ") and "grow" not in kept
