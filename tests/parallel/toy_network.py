"""A cluster with round numbers, and groups for hypothesis."""

from dataclasses import replace

from hypothesis import strategies as st

from tracer.hardware import load_chip
from tracer.hardware.clusters import Cluster
from tracer.machine.kernels import Collective, ExpertExchange, Rates
from tracer.parallel.groups import Group
from tracer.parallel.network import ALGORITHMS, Network

# Domains of 8 chips, 100 GB/s links, a 10 GB/s NIC a chip, all of both reached.
CLUSTER = Cluster(
    id="toy", name="Toy", fabric="string", chip=load_chip("h200_sxm"), domain=8,
    link_bandwidth=100e9, pair_bandwidth=None, link_latency=1e-6, multicast_latency=20e-6,
    nics=8, nic_rate=10e9, nic_share=1.0, leaf=4, same_leaf=3e-6, cross_leaf=5e-6,
    chunk_latency=10e-6, largest=4096, comm_sms=20,
)  # fmt: skip
# Launches of 2 us, hops of 1 us, no other cost.
COSTLESS = Collective(launch=2e-6, hop=1e-6, link=1.0, fill=0.0, reduce=1.0, copy=0.0)
EXPERTS = ExpertExchange(
    short=10e-6, short_link=0.5, short_nic=0.5, launch=40e-6, long_link=1.0, sm=2e9
)
RATES = Rates(matrix=1e15, memory=1e12, sms=100.0, clock=1e9, link=100e9, switch=True)


def network(algorithms=ALGORITHMS, constants=COSTLESS, switch=True, **changes):
    cluster = replace(CLUSTER, **changes)
    rates = RATES._replace(link=cluster.link_bandwidth, switch=switch)
    return Network(cluster, constants, EXPERTS, rates, "toy", "toy", tuple(algorithms))


@st.composite
def groups(draw, even=False):
    """A group that fits the toy cluster."""
    per = draw(st.integers(1, 8))
    domains = draw(st.integers(1, 64))
    ranks = per * domains - (0 if even or domains == 1 else draw(st.integers(0, per - 1)))
    return Group(ranks, per)
