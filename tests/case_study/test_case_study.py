"""The case study's page: as written, complete, in order, and nothing in it typed in."""

import ast
import math
import re
from pathlib import Path

import pytest
from case_claims import VERDICTS, Answer, Claim, Row, in_order
from case_claims.claim import ASSUMING, HOLDS, WRONG, assuming, holds, wrong
from case_claims.page import TEACHING, figure, page
from perturbed_case import perturbed

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "scripts" / "case_claims"
SEED = ROOT.parent / "shared" / "seeds" / "004_30c2f9d36ad6b6c6.txt"

# What no other case changes, and why that is so.
FIXED = {
    "rotation": "an identity",
    "cached_forward": "code of the seed, run",
    "constructs": "code of the seed, run",
    "linear_trains": "code of the seed, run",
    "auxiliary": "α by definition",
    "tensor_scale": "1 by definition",
    "loss_scale": "a default of the library",
    "growth": "a default of the library",
    "h100_bf16": "the datasheet of the chip that the claim names",
    "h100_fp8": "the datasheet of the chip that the claim names",
    "operand_format": "the recipe of the library",
    "master": "a default of the library",
    "nic": "both clusters have 400 Gb/s",
    "context": "both plans have CP 1",
    "kv": "training has no cache",
}
IN_WORDS = ("order of magnitude", "halve", "half")


@pytest.fixture(scope="module")
def seed_lines():
    """The seed's lines; skips where it is not at hand."""
    if not SEED.is_file():
        pytest.skip("no ../shared/seeds")
    return SEED.read_text().splitlines()


def test_page_is_what_the_claims_say(answered):
    case, rows = answered
    assert (ROOT / "docs" / "case_study.md").read_text() == page(case, rows)


def test_every_claim_stands_on_its_line_under_its_heading(seed_lines):
    """In the seed's order, and no heading of ours is another than the last of the seed's."""
    place = 0
    for claim in in_order():
        assert claim.quote in seed_lines[claim.line - 1], claim
        assert claim.line >= place
        place = claim.line
        before = [
            re.sub(r'^\s*#+ |\*\*|"', "", line).removeprefix("title: ").strip()
            for line in seed_lines[: claim.line]
            if re.match(r"#+ [A-Z]|title:|    \*\*Exercise \d", line)
        ]
        assert claim.section == before[-1], claim


def test_printed_figures_stand_in_their_quotes():
    for claim in in_order():
        if claim.printed is not None and not any(word in claim.quote for word in IN_WORDS):
            assert claim.printed in claim.quote, claim


@pytest.mark.parametrize(
    "words",
    [
        r"\d+(\.\d+)?×", r"\d+(\.\d+)?\\times( |\$|}|\\)", r"\\approx", r"\d(\.\d+)?\\?%", r"\$\d",
        r"~\d",
    ],
)  # fmt: skip
def test_no_line_with_a_figure_is_left_out(seed_lines, words):
    """Lines with factors, percentages, dollars and estimates are claims, or shown to be none."""
    claimed = {claim.line for claim in in_order()}
    passed = {
        649: "the price of the claim on the next line",
        678: "256 experts and no factor",
        1067: "prints 1076", 1068: "prints 1077", 1069: "prints 1079",
        1211: "the FLOPs of 1202", 1212: "the FLOPs of 1202",
        1224: "the guess that 1225 multiplies",
    }  # fmt: skip
    left = [
        f"{number}: {line}"
        for number, line in enumerate(seed_lines, 1)
        if re.search(words, line) and number not in claimed and number not in passed
    ]
    assert not left


def test_verdicts_are_consistent(answered):
    _, rows = answered
    assert {row.answer.verdict for row in rows} == set(VERDICTS)
    for row in rows:
        assert row.problem() is None, (row.claim.line, row.problem())
        assert row.claim.how, row.claim
        if row.answer.verdict == WRONG:
            assert len(row.answer.because) > 3, row.claim


def _row(printed: str | None, answer: Answer, *, exact: bool = False) -> Row:
    return Row(Claim(1, "section", "quote", printed, "", exact, lambda case: answer), answer)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (_row("18", holds(18.8)), None),  # 4.4 %
        (_row("18", holds(19.1)), "holds, but 19.1"),  # 6.1 %
        (_row("2", holds(1.6)), None),  # 2 is printed for anything from 1.5 to 2.5
        (_row("2", holds(1.4)), "holds, but 1.4"),
        (_row("60", holds(61), exact=True), "holds, but 61"),
        (_row("60", wrong(61, "a count"), exact=True), None),
        (_row("60", wrong(61, "near")), "wrong, but 61"),
        (_row("60", wrong(90, "")), "wrong without a reason"),
        (_row("60", assuming(90, "this", 61)), None),
        (_row("60", assuming(90, "this", 70)), "70 under the assumption"),
        (_row("60", assuming(90, "this")), "None under the assumption"),
        (_row("60", assuming(61, "this", 61)), "holds under an assumption, but 61"),
        (_row(None, holds(3)), "no reason"),
        (_row(None, holds(3, "so many")), None),
        (_row(None, holds(3, seed=3.0)), None),
        (_row("60", Answer(60, "fine")), "choose one of"),
    ],
)
def test_the_rule(row, problem):
    found = row.problem()
    assert (found is None) == (problem is None)
    assert problem is None or problem in found


def test_no_answer_is_typed_in(answered):
    """In a case where all inputs differ every answer differs, but for those named above."""
    _, rows = answered
    other, same = perturbed(), set()
    for row in {row.claim.measure: row for row in rows}.values():
        if row.claim.measure(other).ours == row.answer.ours:
            same.add(row.claim.measure.__name__)
    assert same == set(FIXED)


def test_no_figure_of_ours_is_a_literal():
    """The first argument of every verdict is worked out."""
    calls = 0
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
                "holds", "wrong", "assuming",
            ):  # fmt: skip
                calls += 1
                names = any(isinstance(x, ast.Call | ast.Name) for x in ast.walk(node.args[0]))
                text = isinstance(node.args[0], ast.Constant)
                assert names or (text and node.args[0].value in ("runs", "constructs", "trains")), (
                    f"{path.name}:{node.lineno}"
                )
    assert calls > 150


def test_by_hand(answered):
    """A second route to figures that matter: arithmetic on the released config."""
    _, rows = answered
    found = {(row.claim.line, row.claim.measure.__name__): row.answer for row in rows}

    def ours(line: int, name: str) -> float:
        return found[line, name].ours

    # A layer: q 7168·1536 + 1536·24576, kv 7168·576 + 512·32768, out 16384·7168 multiply-adds.
    mla = 7168 * 1536 + 1536 * 24576 + 7168 * 576 + 512 * 32768 + 16384 * 7168
    mha = 4 * 7168 * 16384
    assert ours(672, "extra") == pytest.approx(2 * (mla - mha) / 1e6)
    # A cached token: 128 heads, 576 + 512 of the latent against 128 + 128.
    per_token = 2 * 128 * (576 + 512) - 2 * 128 * (128 + 128)
    assert ours(867, "justified") == pytest.approx(2 * (mha - mla) / per_token / 1e3)
    assert ours(861, "standard_fits") == pytest.approx(60e9 / (2 * 128 * 128 * 2 * 61) / 1e3)
    assert ours(862, "latent_fits") == pytest.approx(60e9 / (61 * 576 * 2) / 1e3)
    assert ours(865, "overhead") == pytest.approx(100 * 512 * 32768 * 2 / (4 * 128 * 128))
    # 1F1B idles (p-1)/(m+p-1); DualPipe (p/2-1)(3+2-3) in 3 m + that.
    assert ours(398, "one_f_one_b") == pytest.approx(100 * 15 / 47)
    assert ours(472, "dualpipe") == pytest.approx(100 * 14 / 110)
    assert ours(1077, "bubble_dualpipe") == pytest.approx(100 * 6 / 54)
    assert ours(666, "incremental") == pytest.approx((120 + 15) * 3 / (120 * 3 + 14))
    # 58 layers of 256 experts of 3·7168·2048, BF16, over 16 stages and 64 ranks.
    assert ours(615, "expert_weights") == pytest.approx(58 * 256 * 3 * 7168 * 2048 * 2 / 1024 / 1e9)
    # 385 TFLOP/s were published without the router's 0.6 GFLOP a token.
    assert ours(636, "utilisation") == pytest.approx(38.94, rel=0.005)
    assert ours(653, "dense_equivalent") / 2.664 == pytest.approx(16.18, rel=0.02)
    # A pair stays with 8 of 64 ranks.
    assert ours(1193, "hierarchical") == pytest.approx(100 * (1 - 8 / 64))
    # The standard deviation of a binomial.
    assert ours(887, "deviation_a") == pytest.approx(math.sqrt(1 / 32 * 31 / 32), rel=0.01)
    # One rank of 64 GPUs in the mean of the largest of 64 and 256 normals (2.40 and 2.83).
    assert ours(906, "peak_b") == pytest.approx(2.40, abs=0.08)
    assert ours(905, "peak_a") == pytest.approx(2.83, abs=0.08)
    # A float of 3 mantissa bits, see models/fp8/error.py.
    assert ours(957, "relative_tensor") == pytest.approx(2.45, rel=0.09)


def test_corrections_are_corrections(answered):
    _, rows = answered
    for line, start in TEACHING:
        matching = [r for r in rows if r.claim.line == line and r.claim.quote.startswith(start)]
        assert matching[0].answer.verdict in (WRONG, ASSUMING)
        assert HOLDS not in {row.answer.verdict for row in matching}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), ("runs", "runs"), (0.0, "0"), (65536.0, "65,536"), (2654.153, "2,654"),
        (16.1756, "16.2"), (0.31111, "0.311"), (2.5, "2.50"), (2.2e-6, "2.20e-06"),
        (-0.05, "-0.0500"),
    ],
)  # fmt: skip
def test_figures_as_printed(value, text):
    assert figure(value) == text
