"""Dispatch and combine by hand on round numbers, and what must hold of any."""

from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_network import groups, network

from tracer.errors import UserError
from tracer.parallel.expert_exchange import combine, dispatch
from tracer.parallel.expert_traffic import Routing, spread
from tracer.parallel.experts.copies import copies_of
from tracer.parallel.groups import Group

ALL = Routing(32, 32)  # every token to every expert: counts without chance
GROUP = Group(32, 8)


def test_normal_kernels_send_once_a_domain():
    # 32 ranks in 4 domains: 3 domains over the NIC, 7 of 8 ranks in each over links; BF16, 1000
    # tokens of 500 elements: 1 MB a copy.
    found = dispatch(network(), 1000, 500, ALL, GROUP, precision="bf16", sms=100)
    assert found.volume_inter == pytest.approx(3e6)
    assert found.volume_intra == pytest.approx(28e6)
    # NICs 300 us, links 280 us, SMs 31 MB at 100 x 2 GB/s: 155 us.
    assert found.seconds == pytest.approx(40e-6 + 300e-6)
    assert (found.algorithm, found.sms) == ("normal", 100)
    # The cluster's 20 SMs move 40 GB/s: they are what it waits for.
    few = dispatch(network(), 1000, 500, ALL, GROUP, precision="bf16")
    assert few.seconds == pytest.approx(40e-6 + 31e6 / 40e9)
    assert few.sms == 20
    # A rank with half as much again as the mean.
    skewed = dispatch(network(), 1000, 500, ALL, GROUP, precision="bf16", sms=100, skew=1.5)
    assert skewed.seconds == pytest.approx(40e-6 + 450e-6)


def test_low_latency_kernels_send_once_an_expert():
    # 32 copies, 24 of them to other domains and 7 to other ranks of the own one; half of 10 GB/s.
    found = dispatch(network(), 1000, 500, ALL, GROUP, kernel="low_latency", precision="bf16")
    assert (found.volume_intra, found.volume_inter) == (pytest.approx(7e6), pytest.approx(24e6))
    assert found.seconds == pytest.approx(10e-6 + 24e6 / 5e9)
    assert found.sms == 0
    inside = dispatch(network(), 1000, 500, Routing(8, 8), Group(8, 8), kernel="low_latency",
                      precision="bf16")  # fmt: skip
    assert inside.seconds == pytest.approx(10e-6 + 7e6 / 50e9)


def test_combine_brings_the_same_copies_back_in_bf16():
    there = dispatch(network(), 64, 7168, Routing(256, 8, 8, 4), GROUP, precision="bf16")
    assert combine(network(), 64, 7168, Routing(256, 8, 8, 4), GROUP) == there


@settings(max_examples=100, deadline=None)
@given(groups(), st.integers(0, 10**6), st.sampled_from(["normal", "low_latency"]),
       st.integers(1, 8), st.floats(1, 4))  # fmt: skip
def test_what_holds_of_any_exchange(group, tokens, kernel, top_k, factor):
    routing = Routing(256, top_k)
    net = network()
    found = dispatch(net, tokens, 512, routing, group, kernel=kernel)
    copies = spread(routing, group)
    assert found.seconds >= found.latency
    if group.ranks == 1:
        assert found.seconds == 0
        return
    moved = tokens * 512 * (1 + 4 / 128)
    near = copies.forwarded if kernel == "normal" else copies.pairs_forwarded
    assert found.volume_intra == pytest.approx(moved * near)
    assert found.seconds >= found.volume_inter / net.cluster.nic_bandwidth
    for better in ({"nic_rate": 10e9 * factor}, {"link_bandwidth": 100e9 * factor}):
        quick = dispatch(network(**better), tokens, 512, routing, group, kernel=kernel)
        assert quick.seconds <= found.seconds * (1 + 1e-12)
    sms = dispatch(net, tokens, 512, routing, group, kernel=kernel, sms=20 * factor)
    assert sms.seconds <= found.seconds * (1 + 1e-12)
    empty = dispatch(net, 0, 512, routing, group, kernel=kernel)
    assert empty.seconds == empty.latency


def test_arrays_of_tokens():
    tokens = np.array([0.0, 64, 4096])
    found = dispatch(network(), tokens, 7168, ALL, GROUP)
    one = [dispatch(network(), float(t), 7168, ALL, GROUP).seconds for t in tokens]
    np.testing.assert_allclose(found.seconds, one)


def test_what_an_exchange_is_refused_for():
    for bad, fault in (
        ({"kernel": "fast"}, "kernel 'fast'"), ({"sms": 0}, "sms=0"), ({"skew": 0.5}, "skew=0.5"),
        ({"precision": "int3"}, "token in 'int3'"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=fault):
            dispatch(network(), 8, 64, ALL, GROUP, **bad)
    with pytest.raises(UserError, match="16 ranks in one domain"):
        dispatch(network(), 8, 64, ALL, Group(32, 16))


def test_the_gate_keeps_groups_that_have_a_choice_in_them():
    """Of the kept groups, few go without: at most 4 nodes, more than blind groups would reach."""
    routing, group = Routing(256, 8, 8, 4), Group(64, 8)
    found, blind = copies_of(routing, group), spread(routing, group)
    assert blind.domains == pytest.approx(4 * (1 - comb(96, 8) / comb(128, 8)))
    assert blind.domains + 0.2 < found.domains < 4
    assert found.crossing == pytest.approx(found.domains * 7 / 8)
    assert found.pairs_crossing == blind.pairs_crossing  # every expert is as likely
    moved = dispatch(network(), 64, 7168, routing, GROUP).volume_inter
    assert moved == pytest.approx(64 * 7168 * (1 + 4 / 128) * copies_of(routing, GROUP).crossing)


def test_without_a_limit_copies_are_the_closed_form():
    for routing in (Routing(256, 8), Routing(8, 2, 8, 2)):
        assert copies_of(routing, GROUP) == spread(routing, GROUP)
