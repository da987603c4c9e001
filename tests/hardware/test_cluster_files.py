"""Clusters: the bundled files against their chips, and what a file of one's own is refused for."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from tracer.errors import UserError
from tracer.hardware import ClusterError, cluster_ids, load_cluster
from tracer.hardware.clusters import CLUSTERS, load_directory

REQUIRED_IDS = [
    "h800_ib", "h100_ib", "h200_ib", "h100_roce", "gb200_nvl72", "gb300_nvl72", "b200_ib",
    "mi300x_roce", "a100_ib",
]  # fmt: skip

GOOD = """name = "Toy cluster"
chip = "h200_sxm"
fabric = "string"
aliases = ["toys"]
[domain]
chips = { value = 4, source = "made up" }
bandwidth = { value = 100e9, source = "made up" }
latency = { value = 2e-6, source = "made up" }
[nic]
count = { value = 2, source = "made up" }
bandwidth = { value = 10e9, source = "made up" }
share = { value = 0.5, source = "made up" }
[network]
leaf = { value = 3, source = "made up" }
same_leaf = { value = 1e-6, source = "made up" }
cross_leaf = { value = 5e-6, source = "made up" }
[size]
chips = { value = 64, source = "made up" }
[communication]
sms = { value = 16, source = "made up" }
"""


def write(folder: Path, text: str, name: str = "toy.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", REQUIRED_IDS)
def test_bundled(name: str) -> None:
    cluster = load_cluster(name)
    assert cluster.id == name
    chip = cluster.chip
    # The chip's own file says the same of its links, by another hand.
    assert cluster.link_bandwidth == chip.link_bandwidth
    assert cluster.domain == chip.link_domain
    assert cluster.nic_bandwidth == chip.nic_bandwidth
    assert cluster.comm_sms < (chip.sm_count or 0)
    assert cluster.largest % cluster.domain == 0
    if cluster.pair_bandwidth is not None:
        assert cluster.pair_bandwidth * (cluster.domain - 1) == cluster.link_bandwidth
    assert hash(cluster) == hash(pickle.loads(pickle.dumps(cluster)))


def test_every_number_has_a_source() -> None:
    for name in cluster_ids():
        text = (CLUSTERS / f"{name}.toml").read_text()
        assert text.count("value = ") == len(load_cluster(name).sources)
        assert all(len(source) > 10 for source in load_cluster(name).sources.values())


def test_deepseeks_cluster() -> None:
    cluster = load_cluster("DeepSeek")
    # arXiv 2412.19437 section 3.1: 2,048 H800, 8 a node; table 1: 2 USD an hour.
    assert (cluster.id, cluster.largest, cluster.domain) == ("h800_ib", 2048, 8)
    assert cluster.chip_hour == 2.0
    # arXiv 2505.09343 table 5, InfiniBand: 2.8 us on one leaf, 3.7 us across.
    assert (cluster.wire(32), cluster.wire(33)) == (2.8e-6, 3.7e-6)


def test_a_file_of_your_own(tmp_path: Path) -> None:
    cluster = load_cluster(str(write(tmp_path, GOOD)))
    assert (cluster.id, cluster.chip.id, cluster.domain) == ("toy", "h200_sxm", 4)
    assert cluster.nic_bandwidth == 2 * 10e9 / 4
    assert cluster.multicast_latency is cluster.chip_hour is cluster.pair_bandwidth is None
    assert load_cluster(tmp_path / "toy.toml") == cluster


def test_a_chip_beside_the_cluster(tmp_path: Path) -> None:
    chip = Path(CLUSTERS.parent / "chips" / "h20.toml").read_text()
    (tmp_path / "mine.toml").write_text(chip)
    path = write(tmp_path, GOOD.replace('"h200_sxm"', '"mine.toml"'))
    assert load_cluster(path).chip.id == "mine"


BROKEN = [
    ('fabric = "string"', 'fabrics = "string"', "fabrics", "did you mean fabric"),
    ('chip = "h200_sxm"', 'chip = "h2000"', "chip", "no chip 'h2000'; did you mean"),
    ('chip = "h200_sxm"', 'chip = "gone.toml"', "chip", "gone.toml: No such file"),
    ("[network]", "[net]", "net", "did you mean network"),
    ("chips = { value = 4,", "chips = { value = 4.0,", "domain.chips", "a whole number"),
    ("latency = { value = 2e-6", "latency = { value = 2.0", "domain.latency", "write seconds"),
    ("value = 10e9", "value = 10", "nic.bandwidth", "10 is too small; write B/s"),
    ("value = 0.5", "value = 50", "nic.share", "too large; write a share"),
    ("value = 5e-6", "value = 5e-7", "network.same_leaf", "must not be above"),
    ("value = 64", "value = 3", "size.chips", "must hold one domain"),
    ("value = 16", "value = 0", "communication.sms", "a positive number"),
    ("value = 16", "value = 132", "communication.sms", "132 leave none of the 132 that"),
    ("sms =", "sm =", "communication.sm", "unknown key; did you mean sms"),
    ('count = { value = 2, source = "made up" }\n', "", "nic.count", "missing"),
    ('["toys"]', '"toys"', "aliases", "a list"),
    (
        "[size]",
        '[price]\nchip_hour = { value = 2e6, source = "x" }\n[size]',
        "price.chip_hour",
        "too large; write USD",
    ),
]


@pytest.mark.parametrize(("old", "new", "key", "reason"), BROKEN)
def test_broken_cluster(tmp_path: Path, old: str, new: str, key: str, reason: str) -> None:
    assert GOOD.count(old) == 1, "the case must break one thing"
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ClusterError) as caught:
        load_cluster(path)
    message = str(caught.value)
    assert message.startswith((f"{path}: {key}: ", f"{path}: {key}.value: "))
    assert reason in message
    assert "\n" not in message


def test_unknown_and_doubled_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no cluster 'h100-id'; did you mean h100_ib"):
        load_cluster("h100-id")
    with pytest.raises(ClusterError, match=r"absent\.toml: No such file"):
        load_cluster(tmp_path / "absent.toml")
    write(tmp_path, GOOD)
    write(tmp_path, GOOD, "zoo.toml")
    with pytest.raises(ClusterError, match=r"zoo\.toml: aliases: 'toys' is taken by toy\.toml"):
        load_directory(tmp_path)
