"""The report of every family: nothing empty, nothing that does not apply, tables that add up."""

import math
import re
from dataclasses import replace

import pytest
from matplotlib.figure import Figure as Canvas
from report_studies import formulas, sections, study

from tracer.cost import Conventions
from tracer.machine import Timing
from tracer.report.blocks import Diagram, Figure, Table, Text, blocks_of, placed
from tracer.report.categories import Categories
from tracer.report.data import tables_of
from tracer.report.facts import gather
from tracer.report.sections import build
from tracer.report.sections.analytic import _ASSUMPTIONS
from tracer.report.units import UNITS

FAMILIES = (
    "deepseek", "llama", "mixtral", "qwen3_moe", "gpt_oss", "vit", "denoiser", "convnet", "odd",
    "nothing",
)  # fmt: skip


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def tables(name):
    return {table.name: table for table in tables_of(sections(name))}


def column(table, key):
    keys = [c.key for c in table.columns]
    return [row[keys.index(key)] for row in table.rows]


def test_nothing_is_empty(family):
    for item in placed(sections(family)):
        assert item.section.blocks or item.section.sections, item.section.title
        for block in item.section.blocks:
            if isinstance(block, Table):
                assert block.rows, block.name
                for number, of in enumerate(block.columns):
                    cells = [row[number] for row in block.rows]
                    assert any(cell is not None for cell in cells), (block.name, of.key)
            elif isinstance(block, Text):
                assert block.text.strip()
            elif isinstance(block, Diagram):
                assert len(block.nodes) >= 3
                keys = {node.key for node in block.nodes}
                assert {key for edge in block.edges for key in edge} <= keys
            elif isinstance(block, Figure):
                assert block.caption


def test_every_number_is_finite_and_of_its_unit(family):
    for table in tables(family).values():
        for row in table.rows:
            for cell, of in zip(row, table.columns, strict=True):
                if cell is None:
                    continue
                if UNITS[of.unit].number:
                    assert isinstance(cell, int | float), (table.name, of.key, cell)
                    assert math.isfinite(cell), (table.name, of.key)
                    if of.unit in ("share", "ratio"):
                        assert -1e-9 <= cell <= 1 + 1e-9, (table.name, of.key, cell)
                    elif of.unit in ("s", "B", "FLOP", "count"):
                        assert cell >= 0, (table.name, of.key, cell)
                else:
                    assert isinstance(cell, str), (table.name, of.key, cell)


def test_totals_are_those_of_the_steps(family):
    """Sums over a table's rows, against the step itself: two routes to one number."""
    found = tables(family)
    steps = {
        s.workload.phase: s for s in study(family).steps if s.ledger.execution == "efficient"
    }  # fmt: skip
    for phase, step in steps.items():
        modules = found[f"modules_{phase}_efficient"]
        assert sum(column(modules, "bytes")) == step.cost.total_bytes
        assert sum(column(modules, "seconds")) == pytest.approx(step.times.device)
        if step.cost.total_flops:
            flops = [f or 0 for f in column(modules, "flops")]
            assert sum(flops) == step.cost.total_flops
            assert sum(column(found[f"derivation_{phase}"], "flops")) == step.cost.total_flops
    by_role = found["bytes_by_role"]
    for row in by_role.rows:
        assert sum(cell or 0 for cell in row[2:-1]) == row[-1]
    memory = found["memory"]
    keys = [c.key for c in memory.columns]
    for row in memory.rows:
        cells = dict(zip(keys, row, strict=True))
        parts = ("weights", "kv", "gradients", "optimizer", "activations")
        assert sum(cells.get(part) or 0 for part in parts) == cells["total"]
    if "parameters_by_category" in found:
        whole = study(family).inventory.parameters
        assert sum(column(found["parameters_by_category"], "parameters")) == whole
        assert sum(column(found["modules"], "parameters")) == whole


def test_shares_of_a_step_are_all_of_it(family):
    found = tables(family)
    shares: dict[tuple[str, str], float] = {}
    table = found["category_shares"]
    for phase, execution, share in zip(
        column(table, "phase"), column(table, "exec"), column(table, "time"), strict=True
    ):
        shares[phase, execution] = shares.get((phase, execution), 0.0) + share
    assert shares
    for key, share in shares.items():
        assert share == pytest.approx(1), key
    waits = found["waits"]
    keys = [c.key for c in waits.columns]
    for row in waits.rows:
        cells = dict(zip(keys, row, strict=True))
        parts = ("compute", "memory", "network", "latency")
        assert sum(cells.get(part) or 0 for part in parts) == pytest.approx(cells["step"])


def test_a_derivation_gives_the_flops_beside_it(family):
    checked = 0
    for name, table in tables(family).items():
        if not name.startswith("derivation_"):
            continue
        for text, times, flops in zip(
            column(table, "derivation"), column(table, "times"), column(table, "flops"), strict=True
        ):
            if re.fullmatch(r"[\d,x()+ pairs]+", text):
                arithmetic = text.replace(",", "").replace("pairs", "").replace("x", "*")
                assert eval(arithmetic) * times == flops, text
                checked += 1
    assert checked or family == "nothing"


APPLIES = {
    "Can decode become compute-bound?": {"deepseek", "llama", "mixtral", "qwen3_moe", "gpt_oss"},
    "Appendix A: full FLOP derivations": set(FAMILIES) - {"nothing"},
    "Parameters and memory": set(FAMILIES) - {"nothing"},
    "Category roofline: prefill": {"deepseek", "llama", "mixtral", "qwen3_moe", "gpt_oss"},
    "Sensitivity": set(),
    "Weight statistics": set(),
    "Plans and communication": set(),
}  # fmt: skip


@pytest.mark.parametrize("title", APPLIES)
def test_a_section_is_there_where_it_applies(family, title):
    titles = {item.section.title for item in placed(sections(family))}
    assert (title in titles) == (family in APPLIES[title])


def test_experts_are_spoken_of_where_there_are_some(family):
    moe = family in ("deepseek", "mixtral", "qwen3_moe", "gpt_oss")
    rules = set(column(tables(family)["conclusions"], "rule"))
    assert ("moe" in rules) == moe
    fingerprint = dict(tables(family)["fingerprint"].rows)
    assert ("mixture of experts" in fingerprint) == moe
    if moe:
        experts, chosen = {"deepseek": (16, 4)}.get(family, (8, 2))
        assert fingerprint["mixture of experts"] == (
            f"{experts} routed experts, {chosen} chosen by a token"
        )


@pytest.mark.parametrize(
    ("name", "heads", "cache"),
    [
        # 4 heads of 8; 2 of them have a key and a value: 2 x 2 x 8 of 4 x 2 x 8.
        ("llama", "4 query heads of size 8",
         "32 elements a token of 64 (2 key-value heads, 2 queries share each)"),
        ("gpt_oss", "4 query heads of size 8",
         "32 elements a token of 64 (2 key-value heads, 2 queries share each)"),
        # Queries and keys of 16 + 8, values of 16; the latent is 32 + 8 of 4 x (24 + 16).
        ("deepseek", "4 query heads of size 24 for queries and keys, 16 values",
         "40 elements a token of 160 (one key and value for all heads, or a latent of that size)"),
        ("vit", "4 query heads of size 8", None),
    ],
)  # fmt: skip
def test_attention_is_told_from_shapes(name, heads, cache):
    found = dict(tables(name)["fingerprint"].rows)
    assert found["attention heads"] == heads
    assert found.get("KV cache of a layer") == cache


# Words that mean nothing to a model without experts, without sequences.
NO_EXPERTS = ("expert", "routing", "routed")
NO_TOKENS = ("token", "decode", "cache", "causal", "masked", "prompt", "tokens/s", "sequence")
FOREIGN = {
    "llama": NO_EXPERTS,
    "vit": NO_EXPERTS + NO_TOKENS,
    "convnet": NO_EXPERTS + NO_TOKENS,
    "odd": NO_EXPERTS + NO_TOKENS,
    "nothing": NO_EXPERTS + NO_TOKENS,
}
# Definitions of words, and rows of other models, are the same in every report.
GENERAL = {"terms", "accuracy", "formulas"}


def _words(name):
    """(where, text) of all prose, captions, headers and text cells."""
    whole = replace(study(name), **_fields(formulas(name)))
    for item in placed(build(whole)):
        for block in item.section.blocks:
            if isinstance(block, Text):
                yield item.section.title, block.text
            elif isinstance(block, Table) and block.name not in GENERAL:
                yield block.name, block.caption
                yield block.name, " ".join(column.header for column in block.columns)
                texts = [n for n, c in enumerate(block.columns) if c.unit == "text"]
                for row in block.rows:
                    yield block.name, " ".join(str(row[n]) for n in texts if row[n] is not None)


def _fields(found):
    return {k: v for k, v in found._asdict().items() if k != "remarks"}


@pytest.mark.parametrize("name", FOREIGN)
def test_no_word_of_another_kind_of_model(name):
    for where, text in _words(name):
        for word in FOREIGN[name]:
            assert word not in text.lower(), (where, word, text)


def test_products_in_fp32_run_at_the_rate_of_vector_units():
    """66.9 TFLOP/s of an H200: BF16 is 989.4 / 66.9 = 14.8 times as fast, and no roof is BF16's."""
    found = tables("convnet")
    roofs = {row[1]: row for row in found["roofs"].rows}
    assert roofs["fp32"][2] == 66.9e12
    assert roofs["fp32"][4] == pytest.approx(66.9 / 4.8)
    waits = {row[0]: row for row in found["conclusions"].rows}
    assert any("against a ridge of 14 (fp32)" in row[1] for row in waits.values())
    advice = " ".join(column(found["next_steps"], "finding"))
    assert "fp8" not in advice.lower()
    facts = gather(study("convnet"))
    assert [p.faster for p in facts.phases] == [
        ("tf32", pytest.approx(494.7 / 66.9, rel=1e-3), 1)
    ] * 2
    drawn = [b for b in blocks_of(sections("convnet")) if isinstance(b, Figure)]
    for figure in drawn:
        canvas = Canvas()
        figure.draw(canvas)
        assert canvas.axes, figure.name


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_a_layers_own_sums_belong_to_no_block(name):
    """What a table of modules has under the feed-forward is all of that category, to the byte;
    residual sums are ops of the layer itself.
    """
    found = tables(name)
    block = ".mlp" if name == "llama" else ".self_attn"
    category = "feed-forward" if name == "llama" else "attention"
    modules = found["modules_prefill_efficient"]
    moved = sum(
        nbytes
        for module, nbytes in zip(column(modules, "module"), column(modules, "bytes"), strict=True)
        if module.startswith(f"model.layers.*{block}")
    )
    step = next(s for s in study(name).steps
                if (s.workload.phase, s.ledger.execution) == ("prefill", "efficient"))  # fmt: skip
    costs = step.ledger.by(Categories(step.trace).of_part)
    assert costs[category].total_bytes == moved
    assert Categories(step.trace).of("model.layers.1") == "rest"


# Section 2, the notation of 5.2 and the exploration of 6.7 of the seed report.
SEED_TERMS = (
    "F_theory", "F_tensorcore", "F_realizable", "eta_tc(B)", "M_eff", "B_sat", "P_peak",
    "P_effective", "WRF_attn/dense/moe", "W_eff", "activation_fusion_factor",
    "elementwise_bytes_factor", "A", "A_kv", "C_kv", "D", "bytes_weights", "bytes_activations",
    "bytes_kv", "bytes_temporary", "bytes_hbm", "bytes_net", "bytes_total", "AI_hbm", "AI_total",
    "OI_knee", "OI_inf_hbm(L)", "OI_net", "B_crit", "min B_g", "T_comp", "T_hbm", "T_net", "T_est",
    "TF_est", "TF_roofline_hbm",
)  # fmt: skip


def test_every_term_of_the_seed_report_has_a_meaning_or_a_reason():
    rows = tables("llama")["terms"].rows
    known = {term: row for row in rows for term in row[0].split(", ")}
    assert set(SEED_TERMS) <= known.keys()
    for term in SEED_TERMS:
        _, meaning, _, why = known[term]
        assert meaning.endswith(".")
        assert why or not meaning.startswith("Not "), term  # what is not used has a reason


def test_every_assumption_says_what_it_is():
    for of in (Timing(), Conventions()):
        assert set(of.names()) <= _ASSUMPTIONS.keys()
    shown = dict.fromkeys(column(tables("llama")["assumptions"], "name"))
    assert {"causal", "host"} <= shown.keys()
    assert (
        not {"routing", "launch"} & shown.keys()
    )  # no experts; kernels have launches of their own
    assert "routing" in column(tables("deepseek")["assumptions"], "name")
    assert not {"routing", "causal"} & set(column(tables("vit")["assumptions"], "name"))


def test_an_unused_name_never_reaches_the_blocks_as_a_mark():
    for block in blocks_of(sections("odd")):
        if isinstance(block, Text):
            assert "<img" not in block.text or "`" in block.text
