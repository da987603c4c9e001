"""What is read off a trace: what a module is for, which encoding, how large a cache."""

from dataclasses import replace

import pytest
from report_studies import sections, study

from tracer.report.blocks import Table, Text
from tracer.report.categories import Categories
from tracer.report.data import tables_of
from tracer.report.facts import gather
from tracer.report.fingerprint import fingerprint
from tracer.report.text import size


def tables(name):
    return {table.name: table for table in tables_of(sections(name))}


def column(table, key):
    keys = [c.key for c in table.columns]
    return [row[keys.index(key)] for row in table.rows]


def test_no_convolution_is_asked_to_run_in_fp8():
    """Half precision has FP8 as its next smaller format; convolutions have no kernels for it."""
    found = study("half_convnet", "--phase", "forward", "--exec", "efficient")
    (step,), (phase,) = found.steps, gather(found).phases
    busy = {"conv": 0.0, "gemm": 0.0}
    for timed in step.times.kernels:
        if timed.works == "compute" and timed.kernel.kind in busy:
            busy[timed.kernel.kind] += timed.total - timed.launch
    assert busy["conv"] > 0
    name, ratio, part = phase.faster
    assert (name, round(ratio, 2)) == ("fp8", 2)
    assert part == pytest.approx(busy["gemm"] / sum(busy.values()))


def test_a_block_that_attends_itself_keeps_its_mlp_apart():
    """Of a layer's 16,640 parameters attention has the products around it: qkv and out."""
    found = tables("denoiser")["parameters_by_category"]
    by = dict(zip(column(found, "category"), column(found, "parameters"), strict=True))
    assert by["attention"] == 2 * (33 * 96 + 33 * 32)
    assert by["feed-forward"] == 2 * (33 * 128 + 129 * 32 + 33 * 32)  # the scale reads the time
    known = Categories(study("denoiser").steps[0].trace)
    assert known.of("blocks.1.mlp.1") == "feed-forward"  # the GELU between its two products
    assert known.of("blocks.0.norm") == "rest"
    assert known.of("blocks.0") == known.of("blocks.1.qkv") == "attention"


def test_a_cache_with_windows_is_not_as_large_as_its_tokens():
    """GPT-OSS: 2 of 4 layers keep 16 of 48 tokens, 2 keys and 2 values of 8 BF16 each."""
    a_token = 2 * 2 * 8 * 2
    kept = (2 * 48 + 2 * 16) * a_token
    told = dict(fingerprint(study("gpt_oss")))["cache of a sequence"]
    # A window of 16 is full before the prompt ends: it counts for no token of the inventory.
    assert told == (
        f"a sequence of 48 tokens keeps {size(kept)}, of which {size(2 * 16 * a_token)} do not "
        "grow with them (a state, windows or an encoder's keys)"
    )
    inventory = replace(study("gpt_oss").inventory, kv_bytes_per_token=4 * a_token)
    wide = dict(fingerprint(replace(study("gpt_oss"), inventory=inventory)))["cache of a sequence"]
    assert wide == (
        f"a sequence of 48 tokens keeps {size(kept)} of the {size(4 * 48 * a_token)} that all "
        "layers write for them (windows)"
    )
    unknown = replace(study("gpt_oss").inventory, kv_bytes_per_token=0)  # as without a prompt
    alone = dict(fingerprint(replace(study("gpt_oss"), inventory=unknown)))["cache of a sequence"]
    assert alone == f"a sequence of 48 tokens keeps {size(kept)}"
    limits = tables("gpt_oss")["limits"]
    held = dict(zip(column(limits, "limit"), column(limits, "value"), strict=True))
    tokens = held["tokens of cache that the whole memory of a chip holds, in sequences of 48"]
    assert tokens == pytest.approx(141e9 / kept * 48)
    assert "cache of a sequence" not in dict(fingerprint(study("llama")))


def test_an_embedding_of_time_is_no_rotary_encoding():
    def position(name):
        return dict(zip(*(column(tables(name)["fingerprint"], k) for k in ("property", "value")),
                        strict=True))["position encoding"]  # fmt: skip

    assert (
        position("denoiser") == "sines and cosines of a position or a time, multiplied with nothing"
    )
    for name in ("deepseek", "llama", "gpt_oss"):
        assert position(name) == "rotary (sines and cosines, multiplied in)"


def test_the_accuracy_table_has_what_the_run_relies_on():
    """Convolutions and FP32 lean on rows of products that were measured, and that is said."""

    def told(name):
        found = next(s for s in sections(name)[0].sections if s.title.startswith("Accuracy"))
        (table,) = (b for b in found.blocks if isinstance(b, Table))
        words = [b.text for b in found.blocks if isinstance(b, Text) and "Not measured" in b.text]
        return {row[0] for row in table.rows}, words

    families, words = told("convnet")
    assert families == {"elementwise", "gemm"}
    assert words and words[0].startswith("Not measured: products in fp32. They take the form")
    families, words = told("half_convnet")
    assert words[0].startswith("Not measured: convolutions. They take the form")
    families, words = told("llama")
    assert not words
    assert families == {"elementwise", "gemm", "attention_prefill", "attention_decode"}
    assert "grouped" in told("mixtral")[0]
