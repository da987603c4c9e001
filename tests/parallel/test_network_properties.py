"""What must hold of any collective on any cluster, and a second estimator's order of magnitude."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_network import groups, network

from tracer.hardware import cluster_ids
from tracer.machine.kernels import Collective
from tracer.machine.kernels.collectives import OPS
from tracer.parallel.groups import Group
from tracer.parallel.network import network_of

REAL = Collective(launch=4e-6, hop=9e-7, link=0.8, fill=4e-5, reduce=1.2, copy=0.4)
ops = st.sampled_from([op for op in OPS if op != "send"])
sizes = st.floats(0, 1e11)


@settings(max_examples=150, deadline=None)
@given(ops, sizes, groups(), st.sampled_from(cluster_ids()))
def test_no_collective_beats_its_wires(op, size, group, name):
    net = network_of(name)
    found = net.time(op, size, group)
    assert 0 <= found.latency <= found.seconds * (1 + 1e-12)
    links = net.links(group.per_domain).link
    bound = max(found.volume_intra / links, found.volume_inter / net.cluster.nic_bandwidth)
    assert found.seconds >= found.latency + bound * (1 - 1e-9)
    # What a domain lacks must come in through its NICs, whatever the algorithm.
    lacking = {"all_reduce": 1, "broadcast": 1, "all_gather": 1 - group.per_domain / group.ranks,
               "reduce_scatter": 0, "all_to_all": 0}[op]  # fmt: skip
    if group.domains > 1 and group.per_domain == group.fewest:
        into = group.fewest * net.cluster.nic_bandwidth
        assert found.seconds >= size * lacking / into * (1 - 1e-9)


@settings(max_examples=150, deadline=None)
@given(ops, sizes, sizes, groups())
def test_more_bytes_take_no_less_time(op, first, second, group):
    net = network(constants=REAL)
    small, large = sorted((first, second))
    assert net.time(op, small, group).seconds <= net.time(op, large, group).seconds * (1 + 1e-12)


@settings(max_examples=150, deadline=None)
@given(ops, sizes, groups(), st.sampled_from(["link_bandwidth", "nic_rate", "nics", "nic_share",
       "same_leaf", "cross_leaf", "multicast_latency", "chunk_latency"]),
       st.floats(1, 10))  # fmt: skip
def test_a_better_network_is_never_slower(op, size, group, what, factor):
    base = network(constants=REAL, nic_share=0.1)
    value = getattr(base.cluster, what)
    seconds = what.endswith(("leaf", "latency"))
    better = network(
        constants=REAL, **{"nic_share": 0.1, what: value / factor if seconds else value * factor}
    )
    assert better.time(op, size, group).seconds <= base.time(op, size, group).seconds * (1 + 1e-12)


@settings(max_examples=100, deadline=None)
@given(ops, groups())
def test_no_bytes_cost_latency_alone(op, group):
    found = network(constants=REAL).time(op, 0, group)
    assert found.seconds == found.latency
    assert found.volume_intra == found.volume_inter == 0
    assert (found.seconds == 0) == (group.ranks == 1)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["all_reduce", "all_gather", "reduce_scatter"]), st.floats(1, 1e10),
       groups(even=True))  # fmt: skip
def test_levels_sum_to_the_ring(op, size, group):
    """Links and NICs together carry (n-1)/n of the message, twice for an all-reduce."""
    for way in ("ring", "hierarchical"):
        found = network((way, "pat"), switch=False).time(op, size, group)
        whole = (2 if op == "all_reduce" else 1) * (group.ranks - 1) / group.ranks * size
        assert found.volume_intra + found.volume_inter == pytest.approx(whole)


@settings(max_examples=50, deadline=None)
@given(ops, groups(), st.sampled_from(cluster_ids()))
def test_arrays_are_rows_of_numbers(op, group, name):
    net, many = network_of(name), np.array([[0.0, 1e3, 1e6], [1e8, 1e9, 1e10]])
    found = net.time(op, many, group)
    for index, size in np.ndenumerate(many):
        one = net.time(op, float(size), group)
        assert isinstance(one.seconds, float)
        assert found.seconds[index] == pytest.approx(one.seconds)
        if group.ranks > 1:
            assert found.algorithm[index] == one.algorithm


def test_a_group_of_one_costs_nothing():
    for op in OPS:
        found = network().time(op, 1e9, Group(1, 1))
        assert found[:4] == (0, 0, 0, 0)
        assert found.algorithm == "none"
        assert found.sms == 0


@pytest.mark.parametrize("ranks", [2, 4, 8, 16, 64, 256])
@pytest.mark.parametrize("op", ["all_reduce", "all_gather", "reduce_scatter", "all_to_all"])
def test_torchs_estimate_is_of_the_same_order(op, ranks, monkeypatch):
    """The model of NCCL (tuning.cc) in torch, on Hopper and NDR, with 8 GPUs a node.

    It gives a group over nodes the bandwidth of about one NIC, whatever its shape; so does a group
    with one rank a node here, and one with eight has eight.
    """
    analysis = pytest.importorskip("torch._inductor.comm_analysis")
    for name, value in (
        ("get_gpu_type", lambda: analysis.NVIDIA_GPU_TYPE.HOPPER),
        ("_has_nvlink", lambda: True),
    ):
        monkeypatch.setattr(analysis, name, value)
    net = replace(network_of("h100_ib"), algorithms=("ring", "tree"))
    kind = analysis.NCCL_COLL[op.upper()]
    ours, theirs = [], []
    for power in range(20, 33, 2):  # up to 4 GiB
        size = 2**power
        ours.append(net.time(op, size, Group(ranks, 8)).seconds)
        # torch means the input of an all-gather; its share is the whole over the ranks.
        theirs.append(1e-3 * analysis.estimate_nccl_collective_runtime_impl(size, ranks, kind))
    assert ours == sorted(ours)
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    assert all(0.1 < ratio < 10 for ratio in ratios), ratios
    if ranks > 8:
        alone = net.time(op, 2.0**32, Group(ranks, 1)).seconds
        assert 1 / 3 < alone / theirs[-1] < 3
