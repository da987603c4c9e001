"""Statistics streamed from a file against the same from whole tensors in FP64, and by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from released_checkpoints import random_model, released_tensors, write
from small_configs import FP8

from tracer.models import fp8, strips
from tracer.models.shards import CheckpointError, open_checkpoint
from tracer.models.weight_rows import TensorStats, grouped, layer_groups, worst_underflow
from tracer.models.weight_stats import weight_stats

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def rows_of(folder, tensors, **options) -> dict[str, TensorStats]:
    checkpoint = open_checkpoint(write(folder, tensors, {}, shards=2))
    return {row.name: row for row in weight_stats(checkpoint, **options)}


def expected(w: torch.Tensor, sigma: float = 6.0) -> dict[str, float]:
    """The definitions, on the whole tensor; losses by casting to E4M3."""
    w = w.float()
    x = w.double()
    apart = x - x.mean()
    variance = apart.square().mean()
    scale = w.abs().max().clamp(min=1e-20) / 448
    blocks = fp8.quantize_blocks(w)[0].float()
    tensor = (w / scale).to(torch.float8_e4m3fn).float()
    return {
        "mean": x.mean().item(),
        "std": variance.sqrt().item(),
        "abs_max": x.abs().max().item(),
        "outlier_share": (x.abs() > sigma * variance.sqrt()).double().mean().item(),
        "kurtosis": (apart.pow(4).mean() / variance.square()).item(),
        "lost_per_tensor": ((tensor == 0) & (w != 0)).double().mean().item(),
        "lost_per_block": ((blocks == 0) & (w != 0)).double().mean().item(),
        "zeros": int((w == 0).sum()),
    }


def assert_row(row: TensorStats, w: torch.Tensor, sigma: float = 6.0) -> None:
    assert (row.count, row.nonfinite) == (w.numel(), 0)
    for key, want in expected(w, sigma).items():
        # Counts are exact. Sums of n FP64 terms in another order differ by some n·1e-16.
        exact = key in ("abs_max", "outlier_share", "lost_per_tensor", "lost_per_block", "zeros")
        close = want if exact else pytest.approx(want, rel=1e-9, abs=1e-12)
        assert getattr(row, key) == close, key


def heavy(shape: tuple[int, int], seed: int) -> torch.Tensor:
    """Heavy tails over many binades, different from block to block, some zeros."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(shape, generator=generator) * torch.randn(shape, generator=generator).exp() ** 2
    w *= torch.rand(shape[0], 1, generator=generator) ** 4
    w[torch.rand(shape, generator=generator) < 0.01] = 0
    return w * 0.02


@settings(max_examples=12, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 300), st.integers(1, 400)),
    dtype=st.sampled_from(sorted(DTYPES)),
    seed=st.integers(0, 1000),
    strip_bytes=st.sampled_from([1, 100_000, 4 << 20]),
)
def test_streamed_is_whole(tmp_path_factory, shape, dtype, seed, strip_bytes):
    w = heavy(shape, seed).to(DTYPES[dtype])
    if shape[0] * shape[1] == 1 or w.float().abs().max() == 0:
        return  # no spread: below
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strips.spans, "__defaults__", (strip_bytes,))
        rows = rows_of(tmp_path_factory.mktemp("w") / "c", {"w": w}, sigma=3.0)
    assert_row(rows["w"], w, sigma=3.0)


def test_the_heavy_tensors_do_lose_something():
    """Else the test above would show nothing about losses."""
    found = expected(heavy((256, 384), 0).bfloat16(), sigma=3.0)
    assert 0.05 < found["lost_per_block"] < found["lost_per_tensor"] < 0.9
    assert 0 < found["outlier_share"] < 0.1


@settings(max_examples=12, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 300), st.integers(2, 400)),
    seed=st.integers(0, 1000),
    strip_bytes=st.sampled_from([1, 100_000]),
)
def test_fp8_is_measured_as_what_it_means(tmp_path_factory, shape, seed, strip_bytes):
    values, scales = fp8.quantize_blocks(heavy(shape, seed))
    meant = fp8.dequantize(values, scales)
    if not meant.any():
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strips.spans, "__defaults__", (strip_bytes,))
        rows = rows_of(
            tmp_path_factory.mktemp("w") / "c", {"w": values, "w_scale_inv": scales}, sigma=3.0
        )
    (row,) = rows.values()  # scales get no row of their own
    want = expected(meant, 3.0)
    assert row.dtype == "F8_E4M3"
    for key in ("outlier_share", "lost_per_tensor", "lost_per_block", "zeros", "abs_max"):
        assert getattr(row, key) == want[key], key
    # The sums take exact products where FP32 rounds them: 6e-8 each.
    assert row.std == pytest.approx(want["std"], rel=1e-6)
    assert row.mean == pytest.approx(want["mean"], rel=1e-6, abs=1e-7 * want["abs_max"])
    assert row.kurtosis == pytest.approx(want["kurtosis"], rel=1e-5)


def test_a_stack_of_matrices_has_blocks_of_its_own(tmp_path):
    """[3, 130, 200]: the blocks of a matrix end with it."""
    w = heavy((390, 200), 7).view(3, 130, 200).bfloat16()
    assert_row(rows_of(tmp_path / "c", {"w": w})["w"], w)


def test_by_hand(tmp_path):
    """128 x 256: a block of 448 beside one of 2^-10, the largest that a scale of 1 loses."""
    edge = torch.full((128, 256), 448.0)
    edge[:, 128:] = 2.0**-10
    over = edge.clone()
    over[:, 128:] = 2.0**-10 * (1 + 2.0**-7)  # the next BF16
    rows = rows_of(tmp_path / "c", {"edge": edge.bfloat16(), "over": over.bfloat16()})
    assert (rows["edge"].lost_per_tensor, rows["edge"].lost_per_block) == (0.5, 0.0)
    assert (rows["over"].lost_per_tensor, rows["over"].lost_per_block) == (0.0, 0.0)
    # Half 448, half 1/1024: mean (448 + 2^-10)/2, std half the difference, two points: kurtosis 1.
    assert rows["edge"].mean == pytest.approx((448 + 2**-10) / 2)
    assert rows["edge"].std == pytest.approx((448 - 2**-10) / 2)
    assert rows["edge"].kurtosis == pytest.approx(1.0)


def test_outliers_by_hand(tmp_path):
    """49 of 1, 50 of -1, one of 30."""
    w = torch.ones(1, 100, dtype=torch.bfloat16)
    w[0, 1::2] = -1
    w[0, 0] = 30
    # mean (49 + 30 - 50)/100 = 0.29; variance 9.99 - 0.29^2 = 9.9059; std 3.1474; 30 = 9.53 std.
    rows = rows_of(tmp_path / "a", {"w": w}, sigma=9.0)
    assert rows["w"].outlier_share == 0.01
    assert rows["w"].std == pytest.approx(math.sqrt(9.9059))
    assert rows_of(tmp_path / "b", {"w": w}, sigma=10.0)["w"].outlier_share == 0.0


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_odd_tensors(tmp_path, dtype):
    broken = torch.ones(4, 4)
    broken[0, 0], broken[1, 1], broken[2, 2] = float("nan"), float("inf"), -3
    tensors = {
        "norm": torch.full((300,), 1.5),
        "zeros": torch.zeros(130, 10),
        "broken": broken,
        "all_nan": torch.full((3, 3), float("nan")),
        "empty": torch.empty(0, 5),
        "scalar": torch.tensor(2.0),
    }
    rows = rows_of(tmp_path / "c", {n: t.to(DTYPES[dtype]) for n, t in tensors.items()})
    norm = rows["norm"]
    assert (norm.mean, norm.std, norm.kurtosis) == (1.5, 0.0, None)
    assert (norm.outlier_share, norm.lost_per_tensor, norm.lost_per_block) == (None, None, None)
    zeros = rows["zeros"]
    assert (zeros.zeros, zeros.abs_max, zeros.outlier_share) == (1300, 0.0, 0.0)
    assert (zeros.lost_per_tensor, zeros.lost_per_block) == (0.0, 0.0)
    assert (rows["broken"].nonfinite, rows["broken"].count) == (2, 14)
    assert rows["broken"].mean == pytest.approx((13 - 3) / 14)
    assert (rows["broken"].abs_max, rows["broken"].lost_per_tensor) == (3.0, None)
    assert (rows["all_nan"].count, rows["all_nan"].mean) == (0, None)
    assert (rows["empty"].count, rows["empty"].nonfinite) == (0, 0)
    assert (rows["scalar"].count, rows["scalar"].mean) == (1, 2.0)


def test_nan_in_fp8(tmp_path):
    values, scales = fp8.quantize_blocks(heavy((130, 130), 1))
    values.view(torch.uint8)[0, :3] = torch.tensor([0x7F, 0xFF, 0x7F], dtype=torch.uint8)
    row = rows_of(tmp_path / "c", {"w": values, "w_scale_inv": scales})["w"]
    meant = fp8.dequantize(values, scales).double()
    assert row.nonfinite == 3
    assert row.mean == pytest.approx(meant.nanmean().item(), rel=1e-6)


def test_rows_of_a_whole_checkpoint_and_their_groups(tmp_path):
    tensors = released_tensors(random_model(FP8, "fp8"))
    rows = rows_of(tmp_path / "c", tensors)
    assert rows.keys() == {name for name in tensors if not name.endswith("_scale_inv")}
    rows = list(rows.values())
    groups = {(g.layers, g.pattern): g for g in grouped(rows)}
    layers = ["outside", "dense layer 0", "MoE layers 1-2", "MTP layer 3"]
    assert sorted({g for g, _ in groups}) == sorted(layers)
    # 8 experts in each of 2 layers, 192 x 256 each: as one tensor.
    name = "model.layers.*.mlp.experts.*.up_proj.weight"
    group = groups["MoE layers 1-2", name]
    assert (group.tensors, group.count) == (16, 16 * 192 * 256)
    whole = torch.stack([
        fp8.dequantize(
            tensors[f"model.layers.{i}.mlp.experts.{e}.up_proj.weight"],
            tensors[f"model.layers.{i}.mlp.experts.{e}.up_proj.weight_scale_inv"],
        )
        for i in (1, 2)
        for e in range(8)
    ]).double()  # fmt: skip
    assert group.mean == pytest.approx(whole.mean().item(), abs=1e-9)
    assert group.std == pytest.approx(whole.std(correction=0).item(), rel=1e-6)
    assert group.abs_max == whole.abs().max().item()
    worst = worst_underflow(rows, top=3)
    assert [r.lost_per_tensor for r in worst] == sorted(
        (r.lost_per_tensor for r in rows if r.lost_per_tensor), reverse=True
    )[:3]
    assert all(type(value) in (str, int, float, list, type(None)) for r in rows
               for value in r.as_dict().values())  # fmt: skip


def test_layer_groups_with_a_gap():
    names = [f"model.layers.{i}.mlp.experts.0.up_proj.weight" for i in (1, 2, 4)]
    groups = layer_groups([*names, "model.layers.3.mlp.up_proj.weight", "lm_head.weight"])
    assert groups[names[0]] == "MoE layers 1-2, 4"
    assert groups["model.layers.3.mlp.up_proj.weight"] == "dense layer 3"
    assert groups["lm_head.weight"] == "outside"


def test_rows_before_the_damage_are_kept(tmp_path):
    """The file shrinks after its header was read: every tensor before the cut still has its row."""
    tensors = {f"w{i}": heavy((128, 64), i).bfloat16() for i in range(8)}
    checkpoint = open_checkpoint(write(tmp_path / "c", tensors, {}, shards=1))
    path = next((tmp_path / "c").glob("*.safetensors"))
    names = list(checkpoint.entries)
    with path.open("r+b") as file:
        file.truncate(checkpoint.entries[names[5]].end - 1)
    kept = []
    with pytest.raises(CheckpointError, match=f"{path.name}: truncated: it ends inside {names[5]}"):
        for row in weight_stats(checkpoint):
            kept.append(row.name)
    assert kept == names[:5]


def test_torch_has_its_threads_back(tmp_path):
    before = torch.get_num_threads()
    rows_of(tmp_path / "c", {"w": heavy((128, 64), 1).bfloat16()})
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan")])
def test_sigma_must_be_positive(tmp_path, sigma):
    checkpoint = open_checkpoint(write(tmp_path / "c", {"w": torch.ones(2, 2)}, {}, shards=1))
    with pytest.raises(ValueError, match="not above 0"):
        weight_stats(checkpoint, sigma=sigma)
