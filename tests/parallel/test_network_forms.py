"""Collectives against their closed forms: steps and volumes by hand, on round numbers."""

import numpy as np
import pytest
from toy_network import network

from tracer.errors import UserError
from tracer.hardware import cluster_ids, load_cluster
from tracer.machine.calibration import calibration_of
from tracer.machine.families import predict
from tracer.parallel.groups import Group, packed, strided
from tracer.parallel.network import ALGORITHMS, network_of

B = 8e6
PURE = network(("ring",), switch=False)


def test_ring_in_a_domain():
    # 8 ranks: 2 x 7 steps of 1 us after 2 us; 2 x 7/8 of 8 MB over 100 GB/s = 140 us.
    found = PURE.all_reduce(B, Group(8, 8))
    assert found.latency == pytest.approx(16e-6)
    assert found.volume_intra == pytest.approx(2 * 7 / 8 * B)
    assert found.seconds == pytest.approx(16e-6 + 140e-6)
    assert found.volume_inter == 0
    assert found.algorithm == "ring"
    # All-gather and reduce-scatter are its two halves.
    for half in (PURE.all_gather(B, Group(8, 8)), PURE.reduce_scatter(B, Group(8, 8))):
        assert half.volume_intra == pytest.approx(7 / 8 * B)
        assert half.seconds == pytest.approx(9e-6 + 70e-6)


def test_nvls_in_a_domain():
    # The switch adds: every rank sends its 8 MB and an eighth of the result, 9 MB: 90 us.
    found = network(("nvls",)).all_reduce(B, Group(8, 8))
    assert found.algorithm == "nvls"
    assert found.volume_intra == pytest.approx(9e6)
    assert found.seconds == pytest.approx(16e-6 + 90e-6)
    # 64 ranks in a ring's steps take 128 us before the first byte; the switch 20 us.
    large = network(domain=72, nics=72).all_reduce(B, Group(64, 64))
    assert large.latency == pytest.approx(20e-6)
    assert large.seconds == pytest.approx(20e-6 + 8e6 * 65 / 64 / 100e9)
    # Three ranks are too few, and another switch cannot add.
    assert network().all_reduce(B, Group(3, 3)).algorithm == "ring"
    assert network(switch=False).all_reduce(B, Group(8, 8)).algorithm == "ring"


def test_ring_over_domains():
    # 4 domains of 8: 62 steps, 6 of them over the network (3 us on one leaf); the rings, one a
    # NIC, carry 2 x 31/32 of the message, an eighth of it each.
    found = PURE.all_reduce(B, Group(32, 8))
    assert found.latency == pytest.approx(2e-6 + 56e-6 + 6 * 3e-6)
    assert found.volume_inter == pytest.approx(2 * 31 / 32 * B / 8)
    assert found.volume_intra + found.volume_inter == pytest.approx(2 * 31 / 32 * B)
    # 1.9375 MB over 10 GB/s = 193.75 us against 13.5625 MB over 100 GB/s = 135.6 us.
    assert found.seconds == pytest.approx(found.latency + 193.75e-6)
    # One domain more lies on two leaves: 5 us a step.
    further = PURE.all_reduce(0, Group(40, 8))
    assert further.latency == pytest.approx(2e-6 + (78 - 8) * 1e-6 + 8 * 5e-6)


def test_tree_over_domains():
    # 16 domains of 8: up and down 7 hops in the domain and 4 levels of the tree.
    found = network(("ring", "tree"), switch=False).all_reduce(1024, Group(128, 8))
    assert found.algorithm == "tree"
    assert found.latency == pytest.approx(2e-6 + 2 * (7e-6 + 4 * 5e-6))
    # Two domains: half up and half down each. More: a rank with two children sends twice as much.
    two = network(("ring", "tree"), switch=False).all_reduce(1024, Group(16, 8))
    assert two.volume_inter == pytest.approx(1024 / 8)
    assert found.volume_inter == pytest.approx(2 * 1024 / 8)


def test_nvls_tree_over_domains():
    net = network(("nvls", "nvls_tree", "ring"))
    found = net.all_reduce(1e9, Group(16, 8))
    assert found.algorithm == "nvls_tree"
    assert found.latency == pytest.approx(20e-6 + 2 * 10e-6)
    assert found.volume_intra == pytest.approx(1e9 * 9 / 8)
    assert found.volume_inter == pytest.approx(1e9 / 8)


def test_hierarchical_levels_sum_to_the_whole():
    net = network(("ring", "hierarchical"), switch=False)
    # 8 MB: 7/8 in the domain, then 1 MB on the rail of 4 domains, then 7/8 in the domain.
    found = net.all_reduce(64e3, Group(32, 8))
    assert found.algorithm == "hierarchical"
    assert found.volume_intra == pytest.approx(2 * 7 / 8 * 64e3)
    assert found.volume_inter == pytest.approx(2 * 3 / 4 * 8e3)
    assert found.volume_intra + found.volume_inter == pytest.approx(2 * 31 / 32 * 64e3)
    # Launches and steps of the three: 2 + 7, 2 + 2 x 3 x 3, 2 + 7 us.
    assert found.latency == pytest.approx(9e-6 + 20e-6 + 9e-6)
    moved = (2 * 7 / 8 * 64e3) / 100e9 + (2 * 3 / 4 * 8e3) / 10e9
    assert found.seconds == pytest.approx(38e-6 + moved)
    for op in (net.all_gather, net.reduce_scatter):
        half = op(64e3, Group(32, 8))
        assert half.algorithm == "hierarchical"
        assert half.volume_intra + half.volume_inter == pytest.approx(31 / 32 * 64e3)


def test_one_rank_a_domain_takes_a_logarithm_of_steps():
    found = network().all_gather(64e3, Group(4, 1))
    assert found.algorithm == "pat"
    assert found.latency == pytest.approx(2e-6 + 2 * 3e-6)
    assert (found.volume_intra, found.volume_inter) == (0, pytest.approx(3 / 4 * 64e3))


def test_all_to_all():
    # 32 ranks in 4 domains: of 32 parts, 7 stay on links, 24 cross, 1 is the rank's own.
    found = network().all_to_all(3.2e6, Group(32, 8))
    assert found.volume_intra == pytest.approx(7 * 1e5)
    assert found.volume_inter == pytest.approx(24 * 1e5)
    assert found.seconds == pytest.approx(2e-6 + 3e-6 + 30e-6 + 2.4e6 / 10e9)
    inside = network().all_to_all(8e5, Group(8, 8))
    assert inside.volume_intra == pytest.approx(7e5)
    assert inside.seconds == pytest.approx(9e-6 + 7e-6)


def test_broadcast_and_send():
    found = network().broadcast(8e5, Group(32, 8))
    assert found.volume_intra + found.volume_inter == pytest.approx(8e5)
    assert found.latency == pytest.approx(2e-6 + 28e-6 + 9e-6)
    near, far = network().send(1e6, Group(2, 2)), network().send(1e6, Group(2, 1))
    assert near.seconds == pytest.approx(3e-6 + 10e-6)
    assert far.seconds == pytest.approx(5e-6 + 100e-6)
    assert network().send(1e6, Group(2, 1, span=5)).seconds == pytest.approx(7e-6 + 100e-6)
    with pytest.raises(UserError, match="a group of 4 ranks"):
        network().send(1, Group(4, 4))


def test_links_from_each_to_each():
    # A seventh of 98 GB/s leads to each other chip: two ranks alone have only that.
    mesh = network(("ring",), switch=False, link_bandwidth=98e9, pair_bandwidth=14e9)
    assert mesh.all_gather(28e6, Group(2, 2)).seconds == pytest.approx(3e-6 + 14e6 / 14e9)
    assert mesh.all_gather(98e6, Group(8, 8)).seconds == pytest.approx(9e-6 + 98e6 * 7 / 8 / 98e9)


def test_a_domain_that_is_not_full_holds_the_others_up():
    # 8 + 8 + 4 ranks: the last domain takes the whole message through 4 NICs.
    assert Group(20, 8).fewest == 4
    full, part = PURE.all_reduce(1e9, Group(24, 8)), PURE.all_reduce(1e9, Group(20, 8))
    assert part.volume_inter == pytest.approx(2 * 19 / 20 * 1e9 / 4)
    assert part.seconds > full.seconds


def test_one_domain_is_the_calibrated_form():
    """The same seconds as the kernel family that `tracer.validate` scores."""
    net, sizes = network_of("h200_ib"), 2.0 ** np.arange(10, 30)
    for ranks in (2, 4, 8):
        for op, reduces in (("all_reduce", 1.0), ("all_gather", 0.0)):
            rows = {"bytes": sizes, "ranks": np.full(20, float(ranks)), "reduces": reduces}
            expected = predict("collective", rows, calibration_of(net.cluster.chip))
            found = net.time(op, sizes, packed(ranks, net.cluster))
            np.testing.assert_allclose(found.seconds, expected, rtol=1e-12)


def test_groups_of_a_numbering():
    cluster = load_cluster("h100_ib")
    assert packed(64, cluster) == Group(64, 8)
    assert packed(12, cluster) == Group(12, 8, 2)
    # DP over TP8: one rank a node; over TP2: four.
    assert strided(16, 8, cluster) == Group(16, 1, 16)
    assert strided(16, 2, cluster) == Group(16, 4, 4)
    # Stages 64 chips apart: 2 ranks, 8 nodes on, 9 nodes from first to last.
    assert strided(2, 64, cluster) == Group(2, 1, 2, 9)
    # 16 replicas of TP8 in racks of 72: 9 fit the first.
    assert strided(16, 8, load_cluster("gb200_nvl72")) == Group(16, 9, 2)
    for bad in ((0, 1), (4, 0)):
        with pytest.raises(UserError, match="give at least 1"):
            strided(*bad, cluster)
    with pytest.raises(UserError, match="need 16,377 chips"):
        strided(2048, 8, cluster.__class__(**{**vars(cluster), "largest": 16376}))


def test_what_the_library_may_run():
    group = Group(128, 8)
    names = {name: network((name,)).all_reduce(1e9, group).algorithm for name in ALGORITHMS}
    # The ring runs everywhere; NVLS and PAT alone have no form of an all-reduce over domains.
    assert names == {
        "ring": "ring", "tree": "tree", "nvls": "ring", "nvls_tree": "ring", "pat": "ring",
        "hierarchical": "hierarchical",
    }  # fmt: skip
    best = network().all_reduce(1e9, group).seconds
    assert best == min(network((name, "nvls")).all_reduce(1e9, group).seconds for name in names)


def test_what_a_group_is_refused_for():
    for bad, fault in (
        ({"ranks": 0, "per_domain": 1}, "ranks=0"),
        ({"ranks": 8, "per_domain": 1.5}, "per_domain=1.5"),
        ({"ranks": 8, "per_domain": 4, "domains": 1}, "give 2 to 8"),
        ({"ranks": 8, "per_domain": 4, "span": 1}, "span=1"),
    ):
        with pytest.raises(UserError, match=fault):
            Group(**bad)
    with pytest.raises(UserError, match="16 ranks in one domain; those of Toy"):
        network().all_reduce(1, Group(16, 16))
    with pytest.raises(UserError, match="goes up to 4,096"):
        network().all_reduce(1, Group(8192, 8))
    with pytest.raises(UserError, match="below zero"):
        network().all_reduce(-1, Group(8, 8))
    with pytest.raises(UserError, match="algorithm 'rings'"):
        network_of("h100_ib", ["rings"])


@pytest.mark.parametrize("name", cluster_ids())
def test_every_cluster_has_a_network_and_says_what_it_rests_on(name):
    net = network_of(name)
    found = net.all_reduce(1e9, Group(2 * net.cluster.domain, net.cluster.domain))
    assert found.sms == net.cluster.comm_sms
    # No more than the NICs of a domain can take in: B at their line rate.
    assert found.seconds > 1e9 / (net.cluster.nics * net.cluster.nic_rate)
    notes = net.notes()
    assert bool(net.cluster.note) == (len(notes) == 4)
    assert all(net.cluster.name in note for note in notes)
    assert ("its chip" in notes[0]) == (net.cluster.chip.id == "h200_sxm")


@pytest.mark.parametrize(
    ("name", "experts"),
    [("h800_ib", "h800_sxm"), ("h100_ib", "h200_sxm"), ("gb200_nvl72", "b200_sxm"),
     ("gb300_nvl72", "b200_sxm"), ("a100_ib", "h200_sxm"), ("mi300x_roce", "h200_sxm")],
)  # fmt: skip
def test_whose_constants_an_exchange_has(name, experts):
    net = network_of(name)
    assert (net.origin, net.experts_origin) == ("h200_sxm", experts)
    assert f"expert exchange: constants of {experts}" in net.notes()[1] or name == "h800_ib"
    for share in (net.experts.short_link, net.experts.short_nic, net.experts.long_link):
        assert 0 < share <= 1
