"""The bundled figures, checked by a second route wherever there is one."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tracer.hardware import chip_ids, load_chip
from tracer.hardware.loader import CHIPS

MEASURED = Path(__file__).parents[3] / "shared" / "measured" / "chips.csv"

# fmt: off
REQUIRED_IDS = [
    "a100_sxm", "h100_sxm", "h100_pcie", "h100_nvl", "h200_sxm", "h800_sxm",
    "h20", "b200_sxm", "b300_sxm", "gb200", "gb300", "mi300x",
    "mi325x", "mi355x", "l40s", "rtx_4090", "tpu_v5e", "tpu_v5p",
    "tpu_v6e", "tpu7x", "gaudi3", "trainium2",
]
# fmt: on


# Dense FLOP per clock per SM (compute unit), from the architecture whitepapers: tensor cores per SM
# x FMA per clock x 2. The clock and SM count are the file's, so a slip in any of the three shows.
PER_CLOCK = {
    ("a100_sxm", "bf16"): 2048,  # 4 tensor cores x 256 FMA
    ("a100_sxm", "tf32"): 1024,
    ("a100_sxm", "int8"): 4096,
    ("a100_pcie", "bf16"): 2048,
    ("h100_sxm", "bf16"): 4096,  # 4 tensor cores x 512 FMA
    ("h100_sxm", "tf32"): 2048,
    ("h100_sxm", "fp8"): 8192,
    ("h200_sxm", "bf16"): 4096,
    ("h200_sxm", "fp8"): 8192,
    ("h800_sxm", "fp8"): 8192,
    ("h100_pcie", "bf16"): 4096,
    ("h100_pcie", "fp8"): 8192,
    ("l40s", "bf16"): 1024,
    ("l40s", "fp8"): 2048,
    ("rtx_4090", "bf16"): 512,  # GeForce: half rate with FP32 accumulation
    ("rtx_4090", "fp8"): 1024,
    ("mi300x", "bf16"): 2048,
    ("mi300x", "fp8"): 4096,
    ("mi325x", "bf16"): 2048,
    ("mi355x", "bf16"): 4096,  # CDNA 4 doubles each unit
    ("mi355x", "fp8"): 8192,
    ("mi355x", "fp4"): 16384,
}

# FP32 lanes x 2, at the FP32 boost clock, which Hopper runs above its tensor clock.
FP32 = {
    "a100_sxm": (108, 64, 1410e6),
    "h100_sxm": (132, 128, 1980e6),
    "h200_sxm": (132, 128, 1980e6),
    "h100_pcie": (114, 128, 1755e6),
    "l40s": (142, 128, 2520e6),
    "rtx_4090": (128, 128, 2520e6),
    "b200_sxm": (148, 128, 1965e6),
    "mi300x": (304, 128, 2100e6),
    "mi355x": (256, 128, 2400e6),
}

# GB/s as marketed, both ways together, summed over links from the per-link figure.
BOTH_WAYS = {
    "a100_sxm": 12 * 50,
    "h100_sxm": 18 * 50,
    "h200_sxm": 18 * 50,
    "h800_sxm": 8 * 50,
    "h20": 18 * 50,
    "b200_sxm": 18 * 100,
    "b300_sxm": 18 * 100,
    "gb200": 18 * 100,
    "gb300": 18 * 100,
    "mi300x": 7 * 128,
    "mi325x": 7 * 128,
    "mi355x": 7 * 153.6,
    "tpu_v5e": 4 * 100,
    "tpu_v5p": 6 * 200,
    "tpu_v6e": 4 * 200,
    "tpu7x": 6 * 200,
    "gaudi3": 21 * 2 * 25,
    "trainium2": 4 * 256,
}

# NVL72 racks: the vendor's totals for 72 GPUs.
RACKS = {
    "gb200": {"bf16": 180e15, "fp8": 360e15, "fp4": 720e15},
    "gb300": {"bf16": 180e15, "fp8": 360e15, "fp4": 1080e15},
}

CSV_IDS = {
    "A100-SXM4-80GB": "a100_sxm",
    "H100-SXM5-80GB": "h100_sxm",
    "H100-PCIe-80GB": "h100_pcie",
    "H100-NVL-94GB": "h100_nvl",
    "H200-SXM-141GB": "h200_sxm",
    "H800-SXM-80GB": "h800_sxm",
    "H20-96GB": "h20",
    "L40S": "l40s",
    "RTX-4090": "rtx_4090",
    "B200-SXM-180GB": "b200_sxm",
    "GB200 (per GPU)": "gb200",
    "B300-SXM-270..288GB": "b300_sxm",
    "GB300 (per GPU)": "gb300",
    "MI300X": "mi300x",
    "MI325X": "mi325x",
    "MI355X": "mi355x",
    "TPU v5e": "tpu_v5e",
    "TPU v5p": "tpu_v5p",
    "TPU v6e": "tpu_v6e",
    "TPU7x (Ironwood)": "tpu7x",
    "Gaudi 3": "gaudi3",
    "Trainium2": "trainium2",
}
# Where the table counts otherwise: its Gaudi figure has the three scale-out ports in it too.
CSV_LINK = {"gaudi3": 525.0}


@pytest.mark.parametrize("chip_id", chip_ids())
def test_every_number_has_a_source(chip_id: str) -> None:
    chip = load_chip(chip_id)
    # By text, not by the loader: each `value` of the file has a `source` that reached the chip.
    lines = (CHIPS / f"{chip_id}.toml").read_text().splitlines()
    figures = [line for line in lines if "value =" in line]
    assert len(chip.sources) == len(figures) >= 3
    assert all(re.search(r'source = "\S[^"]{4,}"', line) for line in figures)
    assert chip.id == chip_id
    assert "/" not in chip.name


def test_required_chips_are_there() -> None:
    assert set(REQUIRED_IDS) <= set(chip_ids())


@pytest.mark.parametrize(("chip_id", "precision"), PER_CLOCK)
def test_peak_is_units_times_rate_times_clock(chip_id: str, precision: str) -> None:
    chip = load_chip(chip_id)
    assert chip.sm_count
    assert chip.clock
    expected = chip.sm_count * PER_CLOCK[chip_id, precision] * chip.clock
    # 1.3%: the L40S datasheet is 1.2% under its boost clock (see its note); the rest are rounding.
    assert chip.peak_for(precision) == pytest.approx(expected, rel=0.013)


@pytest.mark.parametrize("chip_id", FP32)
def test_vector_rate_is_lanes_times_clock(chip_id: str) -> None:
    units, lanes, clock = FP32[chip_id]
    assert load_chip(chip_id).sm_count == units
    assert load_chip(chip_id).vector["fp32"] == pytest.approx(units * lanes * 2 * clock, rel=0.01)


def test_tpu_peaks_are_systolic_arrays_times_clock() -> None:
    assert load_chip("tpu_v5e").peak_for("bf16") == pytest.approx(4 * 128**2 * 2 * 1.5e9, rel=0.01)
    assert load_chip("tpu_v5p").peak_for("bf16") == pytest.approx(8 * 128**2 * 2 * 1.75e9, rel=0.01)
    assert load_chip("gaudi3").peak_for("bf16") == pytest.approx(8 * 256**2 * 2 * 1.6e9, rel=0.001)


@pytest.mark.parametrize("chip_id", BOTH_WAYS)
def test_link_is_half_of_both_ways(chip_id: str) -> None:
    assert load_chip(chip_id).link_bandwidth == pytest.approx(BOTH_WAYS[chip_id] * 1e9 / 2)


@pytest.mark.parametrize("chip_id", RACKS)
def test_rack_totals(chip_id: str) -> None:
    chip = load_chip(chip_id)
    assert chip.link_domain == 72
    assert chip.memory_bandwidth * 72 == pytest.approx(576e12)
    for precision, total in RACKS[chip_id].items():
        assert chip.peak_for(precision) * 72 == pytest.approx(total)


def test_ridge() -> None:
    assert load_chip("h200_sxm").ridge("fp8") == pytest.approx(412.27, abs=0.005)
    assert load_chip("h100_sxm").ridge("bf16") == pytest.approx(295.3, abs=0.05)


def test_one_die_has_one_set_of_peaks() -> None:
    h100, h200, h800 = (load_chip(i) for i in ("h100_sxm", "h200_sxm", "h800_sxm"))
    assert h200.peak == h100.peak
    assert h200.vector == h100.vector
    # The export part loses FP64 alone.
    assert {"fp64": h100.peak["fp64"], **h800.peak} == h100.peak
    assert load_chip("mi325x").peak == load_chip("mi300x").peak


@pytest.mark.parametrize("chip_id", chip_ids())
def test_narrower_precision_is_no_slower(chip_id: str) -> None:
    """A sparse figure among dense ones shows as a step above 2x (3x: Blackwell Ultra's FP4)."""
    peak = load_chip(chip_id).peak
    for wide, narrow in [("tf32", "bf16"), ("bf16", "fp8"), ("fp8", "fp4")]:
        if wide in peak and narrow in peak:
            most = 3 if (wide, chip_id) in {("fp8", "b300_sxm"), ("fp8", "gb300")} else 2.03
            # Gaudi alone has a BF16 engine of 3.7x its TF32 one, which stays unsparse.
            most = 4 if (wide, chip_id) == ("tf32", "gaudi3") else most
            assert 0.99 <= peak[narrow] / peak[wide] <= most


# What nvidia-smi shows, MiB: modal-labs/modal-client#2797 and thundergolfer.com's table of Modal's
# GPUs. The driver keeps 0.4 to 1.1 % of it from programs.
SMI = {"h100_sxm": 81_559, "h200_sxm": 143_771, "a100_sxm": 81_920, "l40s": 46_068}


def test_usable_memory() -> None:
    for chip_id, mebibytes in SMI.items():
        assert 0.988 < load_chip(chip_id).memory_given / (mebibytes * 2**20) < 0.997, chip_id
    for chip in map(load_chip, chip_ids()):
        if chip.memory_usable is None:
            assert chip.memory_given == chip.memory_capacity
        else:  # stacks of GiB where the datasheet has GB, less the driver's share
            assert 0.99 < chip.memory_given / chip.memory_capacity < 2**30 / 1e9, chip.id
            assert "memory.usable" in chip.sources


def test_listing_does_not_import_torch() -> None:
    code = "import sys, tracer.hardware as h; h.load_chip('h200'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(not MEASURED.is_file(), reason="the measured tables are not on this machine")
def test_agrees_with_the_measured_table() -> None:
    def numbers(cell: str) -> list[float]:
        """`13500-14000` is a range; `300 (bridge)` and `200 (400 bidir)` lead with the figure."""
        found = re.match(r"([\d.]+)(?:-([\d.]+))?", cell)
        return [float(part) for part in found.groups() if part] if found else []

    with MEASURED.open(newline="") as file:
        rows = {row["chip"]: row for row in csv.DictReader(file)}
    for name, chip_id in CSV_IDS.items():
        row, chip = rows[name], load_chip(chip_id)
        figures = [
            ("bf16_dense_tflops", chip.peak.get("bf16"), 1e12),
            ("fp8_dense_tflops", chip.peak.get("fp8"), 1e12),
            ("fp4_dense_tflops", chip.peak.get("fp4"), 1e12),
            ("hbm_tbps", chip.memory_bandwidth, 1e12),
            ("hbm_gb", chip.memory_capacity, 1e9),
            ("scaleup_uni_GBps", chip.link_bandwidth, 1e9),
            ("nic_uni_GBps_per_gpu", chip.nic_bandwidth, 1e9),
        ]
        for column, value, unit in figures:
            span = numbers(row[column])
            if column == "scaleup_uni_GBps" and chip_id in CSV_LINK:
                span = [CSV_LINK[chip_id]]
            if not span:
                continue
            assert value is not None, (name, column)
            # Capacity in GiB where the vendor means GiB: the table has the bare number.
            top = span[-1] * (2**30 / 1e9 if column == "hbm_gb" else 1)
            assert span[0] * unit * 0.99 <= value <= top * unit * 1.01, (name, column)
