"""Hypothesis strategies for schedules and unequal durations."""

from hypothesis import strategies as st

from tracer.parallel.schedules import SCHEDULES, Durations, build

NAMES = tuple(SCHEDULES)
_seconds = st.floats(0.01, 10, allow_nan=False)


def size(name, ranks, rounds, more):
    """A number of micro-batches that `name` can have on so many ranks."""
    if name == "interleaved_1f1b":
        return ranks * rounds
    least = 2 * ranks if name.startswith("dualpipe") else 1
    many = max(least, rounds * ranks + more)
    return many + many % 2 if name == "dualpipe" else many


@st.composite
def schedules(draw, names=NAMES):
    name = draw(st.sampled_from(names))
    ranks = draw(st.integers(1, 6))
    if name == "dualpipe":
        ranks += ranks % 2
    stages = draw(st.integers(1, 3)) if name == "interleaved_1f1b" else None
    microbatches = size(name, ranks, draw(st.integers(1, 3)), draw(st.integers(0, 5)))
    return build(name, ranks, microbatches, stages)


@st.composite
def unequal(draw, stages, pairs):
    """Durations that differ from stage to stage; a full backward may be shorter than its parts."""

    def each(count, strategy=_seconds):
        return tuple(draw(st.lists(strategy, min_size=count, max_size=count)))

    maybe = st.floats(0, 3, allow_nan=False)
    overlapped = dict(zip(sorted(pairs), each(len(pairs)), strict=True))
    return Durations(
        each(stages), each(stages), each(stages), draw(st.sampled_from([(), each(stages)])),
        draw(st.sampled_from([None, overlapped])), each(stages - 1, maybe),
        draw(st.sampled_from([(), each(stages - 1, maybe)])), draw(st.booleans()),
    )  # fmt: skip
