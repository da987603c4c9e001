"""The network against published tables: NCCL on H200, DeepEP, DeepSeek's decode limits."""

import tomllib
from pathlib import Path

import numpy as np
import pytest

from tracer.errors import UserError
from tracer.parallel.expert_exchange import combine, dispatch, ep_tpot_limit
from tracer.parallel.expert_traffic import Routing, token_bytes
from tracer.parallel.experts.copies import copies_of
from tracer.parallel.groups import packed
from tracer.parallel.network import network_of

FIGURES = tomllib.loads(Path(__file__).with_name("network_figures.toml").read_text())
CALLS = {"dispatch": (dispatch, "fp8"), "combine": (combine, "bf16")}
HIDDEN = 7168


def cases(*tables):
    return [
        pytest.param(table, row, way, id=f"{table}-{row['ranks']}-{row.get('sms', '')}-{way}")
        for table in tables
        for row in FIGURES[table]["rows"]
        for way in CALLS
    ]


@pytest.mark.parametrize(("table", "row", "way"), cases("low_latency"))
def test_low_latency_exchange(table, row, way):
    figures, (call, _) = FIGURES[table], CALLS[way]
    net = network_of(figures["cluster"])
    found = call(net, figures["tokens"], HIDDEN, Routing(256, 8), packed(row["ranks"], net.cluster),
                 kernel="low_latency")  # fmt: skip
    assert found.seconds * 1e6 == pytest.approx(row[way], rel=figures["tolerance"])


@pytest.mark.parametrize(("table", "row", "way"), cases("normal", "normal_v2"))
def test_normal_exchange(table, row, way):
    figures, (call, precision) = FIGURES[table], CALLS[way]
    net = network_of(row.get("cluster") or figures["cluster"])
    group = packed(row["ranks"], net.cluster)
    routing = Routing(256, 8, group.domains, min(4, group.domains))
    found = call(net, figures["tokens"], HIDDEN, routing, group, sms=row.get("sms"))
    copies = copies_of(routing, group)
    counted = copies.ranks if group.domains == 1 else copies.domains
    logical = figures["tokens"] * counted * token_bytes(HIDDEN, precision) / found.seconds
    assert logical / 1e9 == pytest.approx(row[way], rel=figures["tolerance"])


def test_low_latency_exchange_as_a_whole():
    """Mean error of the ten rows that no constant was taken from."""
    figures = FIGURES["low_latency"]
    net = network_of(figures["cluster"])
    errors = []
    for row in figures["rows"]:
        for way, (call, _) in CALLS.items():
            group = packed(row["ranks"], net.cluster)
            found = call(net, 128, HIDDEN, Routing(256, 8), group, kernel="low_latency")
            if not row.get("fitted"):
                errors.append(abs(found.seconds * 1e6 / row[way] - 1))
    assert len(errors) == 10
    assert np.mean(errors) < 0.04


@pytest.mark.parametrize("op", ["all_reduce", "all_gather"])
def test_nccl_on_eight_gpus(op):
    net = network_of(FIGURES["nccl"]["cluster"])
    rows = [row for row in FIGURES["nccl"]["rows"] if row["op"] == op]
    sizes = np.array([float(row["bytes"]) for row in rows])
    measured = np.array([row["us"] for row in rows])
    found = net.time(op, sizes, packed(8, net.cluster)).seconds * 1e6
    error = np.abs(found / measured - 1)
    assert error.mean() < 0.15
    assert error[sizes > 16 * 2**20].mean() < 0.10


@pytest.mark.parametrize("row", FIGURES["tpot"]["rows"], ids=lambda row: f"{row['bandwidth']:g}")
def test_limit_of_expert_parallel_decode(row):
    # (1 + 2) B x 32 tokens x 9 experts x 7000 = 6.048 MB an exchange; two of them a layer.
    limit = ep_tpot_limit(row["bandwidth"], hidden=7000)
    assert limit * 1e3 == pytest.approx(row["ms"], abs=0.005)
    assert limit / (2 * 61) * 1e6 == pytest.approx(row["exchange_us"], abs=0.005)
    # The paper rounds the rate: 67.8 to 67, 1219.8 to 1200.
    assert 1 / limit == pytest.approx(row["per_second"], rel=0.02)


def test_limit_with_all_of_the_hidden_size():
    assert ep_tpot_limit(50e9) * 1e3 == pytest.approx(14.75712 * 7168 / 7000)
    assert ep_tpot_limit(50e9) * 1e3 == pytest.approx(15.1, abs=0.05)
    with pytest.raises(UserError, match="bandwidth=0"):
        ep_tpot_limit(0)
