"""What each of four real processes does: its part of a model, held against the whole one.

Weights are cut here by hand, from what the layout is meant to be, not by the model's own code.
"""

from __future__ import annotations

import datetime
import json
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from small_configs import FP8, V2_LITE, V3

from tracer.models import Config, KVCache, build
from tracer.models.collectives import ALONE, Group, receive, send
from tracer.models.deepseek import MTP_WEIGHT
from tracer.models.linear import Precision
from tracer.models.parallel import Layout, ParallelDeepSeek, reduce_embedding
from tracer.models.parallel_loss import vocab_parallel_loss
from tracer.models.zero import gather_parameters, owned, reduce_gradients

WORLD = 4
BATCH, SEQ = 2, 8  # of one data rank

# name: (config, tp, ep, and the rest of the layout)
CASES = {
    "dp4": (V3, 1, 1, {}),
    "ep4": (V3, 1, 4, {}),
    "ep2": (V3, 1, 2, {}),
    "tp4": (V3, 4, 1, {}),
    "tp4 sp": (V3, 4, 1, {"sequence_parallel": True}),
    "tp2 ep4": (V3, 2, 4, {}),
    "tp2 ep2 sp": (V3, 2, 2, {"sequence_parallel": True}),
    "tp2 adp": (V3, 2, 1, {"attention_dp": True}),
    "tp2 adp ep4": (V3, 2, 4, {"attention_dp": True}),
    "tp2 lite": (V2_LITE, 2, 1, {}),
    "tp2 sp lite": (V2_LITE, 2, 1, {"sequence_parallel": True}),
    "zero1": (V3, 1, 2, {"zero": 1}),
    "zero2": (V3, 1, 2, {"zero": 2}),
    "zero3": (V3, 1, 2, {"zero": 3}),
    "zero3 tp2 sp": (V3, 2, 2, {"zero": 3, "sequence_parallel": True}),
    "zero1 tp2": (V3, 2, 4, {"zero": 1}),
    "full": (V3, 1, 4, {"recompute": "full"}),
    "latent": (V3, 2, 2, {"recompute": "latent"}),
    "selective": (V3, 2, 2, {"recompute": "selective"}),
    "zero3 selective": (V3, 1, 4, {"zero": 3, "recompute": "selective"}),
    "zero3 full": (V3, 1, 4, {"zero": 3, "recompute": "full"}),
    "cp2": (V3, 1, 1, {"cp": 2}),
    "cp4": (V3, 1, 1, {"cp": 4}),
    "cp4 ep4 zero3": (V3, 1, 4, {"cp": 4, "zero": 3}),
    "cp2 tp2 sp ep4 zero1": (V3, 2, 4, {"cp": 2, "sequence_parallel": True, "zero": 1}),
    "cp2 lite": (V2_LITE, 1, 2, {"cp": 2}),
    "cp2 latent": (V3, 1, 2, {"cp": 2, "recompute": "latent"}),
    "cp2 selective": (V3, 2, 1, {"cp": 2, "recompute": "selective"}),
    "mtp ep4": (V3, 1, 4, {"mtp": True}),
    "mtp tp2 ep4 zero1": (V3, 2, 4, {"mtp": True, "zero": 1}),
    "mtp tp2 sp ep2 zero2": (V3, 2, 2, {"mtp": True, "sequence_parallel": True, "zero": 2}),
    "mtp tp2 adp": (V3, 2, 1, {"mtp": True, "attention_dp": True}),
    "mtp cp2 zero3 selective": (V3, 1, 2, {"mtp": True, "cp": 2, "zero": 3,
                                           "recompute": "selective"}),
    "mtp latent": (V3, 2, 2, {"mtp": True, "recompute": "latent"}),
}  # fmt: skip


def groups(tp: int, ep: int, cp: int = 1) -> dict[str, Group]:
    """The groups of this process; every process makes all groups, in one order."""
    world = list(range(WORLD))
    axes = {
        "tp": [world[i : i + tp] for i in range(0, WORLD, tp)],
        "ep": [world[i : i + ep] for i in range(0, WORLD, ep)],
        "cp": [
            world[j + i : j + tp * cp : tp] for j in range(0, WORLD, tp * cp) for i in range(tp)
        ],
        "dp": [world[i::tp] for i in range(tp)],
        "edp": [world[i::ep] for i in range(ep)],
        "stage": [world],
    }
    mine, rank = {}, dist.get_rank()
    for axis, parts in axes.items():
        for ranks in parts:
            made = dist.new_group(ranks)
            if rank in ranks:
                size = len(ranks)
                mine[axis] = Group(made.group_name, size, ranks.index(rank)) if size > 1 else ALONE
    return mine


def chunks(cp: int, rank: int) -> list[int]:
    """Positions of the two chunks of a sequence that a CP rank has: one from each end."""
    c = SEQ // (2 * cp)
    late = SEQ - (rank + 1) * c
    return [*range(rank * c, (rank + 1) * c), *range(late, late + c)]


def cut(path: str, whole: torch.Tensor, layout: Layout) -> torch.Tensor:
    """This rank's part of a parameter of the whole model."""

    def part(group: Group, dim: int, tensor: torch.Tensor = whole) -> torch.Tensor:
        return tensor.chunk(group.size, dim)[group.rank]

    name = path.split(".")[-2] if path.endswith("weight") else path.rpartition(".")[2]
    if ".mlp.experts." in path:
        if layout.ep.size > 1:
            copies = whole[: layout.redundant_experts]
            return part(layout.ep, 0, torch.cat((whole, copies)))
        return part(layout.tp, 2 if name.startswith("down") else 1)
    if ".shared_experts." in path and layout.ep.size > 1:
        return whole
    if name in ("gate_proj", "up_proj", "down_proj"):
        return part(layout.tp, int(name == "down_proj"))
    if not layout.attention_dp:
        if name in ("q_proj", "q_b_proj", "kv_b_proj", "embed_tokens", "lm_head"):
            return part(layout.tp, 0)
        if name == "o_proj":
            return part(layout.tp, 1)
    return whole


def close(what: str, got: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    """Equal up to the order of sums in FP32."""
    scale = expected.abs().max().item() or 1.0
    error = (got - expected).abs().max().item() / scale
    assert error < tolerance, f"{what}: off by {error:.2e} of the largest value"


def grads_of(model: ParallelDeepSeek, whole: dict[str, torch.Tensor], layout: Layout) -> None:
    """Every gradient that this rank owns against that of the whole model."""
    names = {module: path for path, module in model.named_modules()}
    seen = 0
    for unit in {u for u in model.modules() if hasattr(u, "buckets")}:
        for bucket in unit.buckets:
            paths = [f"{names[unit]}.{path}" for path, _ in bucket.entries]
            expected = [cut(path, whole[path], layout) for path in paths]
            shard = unit.sharded(bucket)
            if shard is None:
                for path, (local, _), grad in zip(paths, bucket.entries, expected, strict=True):
                    close(path, unit.get_parameter(local).grad, grad)
                    seen += 1
                continue
            flat = bucket.flatten(expected)
            close(f"{paths}", shard.grad, flat.chunk(bucket.group.size)[bucket.group.rank])
            seen += len(paths)
    assert seen == len(whole), f"{seen} of {len(whole)} gradients compared"


def in_whole(path: str, main: int) -> str:
    """What the whole model of `main` layers calls a parameter: its MTP module is a layer more."""
    return path.replace("model.mtp.", f"model.layers.{main}.")


def training(config: dict, tp: int, ep: int, options: dict) -> None:
    """Two steps of SGD: logits, gradients, and logits behind the update."""
    sizes = Config.from_hf(config)
    options = dict(options)
    cp, mtp = options.pop("cp", 1), options.pop("mtp", False)
    whole = build(sizes, precision="fp32", training=True, mtp=mtp, device="cpu").init_weights(0)
    layout = Layout(**groups(tp, ep, cp), **options)
    model = ParallelDeepSeek(
        sizes, Precision(torch.float32, training=True), layout, mtp=mtp, device="cpu"
    ).train()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            wide = whole.get_parameter(in_whole(path, sizes.num_hidden_layers))
            parameter.copy_(cut(path, wide, layout))
    model.shard_()

    cut_by = 1 if layout.attention_dp else tp * cp
    data, mine = WORLD // cut_by, dist.get_rank() // cut_by
    tokens = chunks(cp, dist.get_rank() // tp % cp)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, sizes.vocab_size, (2, data * BATCH, SEQ + 2), generator=generator)
    cross_entropy = torch.nn.functional.cross_entropy
    for step_ids in ids:
        inputs, targets, second = step_ids[:, :-2], step_ids[:, 1:-1], step_ids[:, 2:]
        rows = slice(mine * BATCH, (mine + 1) * BATCH)
        share = 1 / (data * cp)
        if mtp:
            both = whole(inputs, next_ids_BS=targets)
            made = model(inputs[rows][:, tokens], next_ids_BS=targets[rows][:, tokens])
        else:
            both, made = (whole(inputs),), (model(inputs[rows][:, tokens]),)
        loss = part = 0.0
        for expected, logits, ahead, weight in zip(
            both, made, (targets, second), (1.0, MTP_WEIGHT), strict=False
        ):
            found = expected[rows][:, tokens].detach()
            close("logits", model.whole_logits(logits.detach()), found)
            loss = loss + weight * cross_entropy(expected.flatten(0, 1), ahead.flatten())
            part = part + vocab_parallel_loss(
                logits, ahead[rows][:, tokens], layout.attention, weight * share
            )
        loss.backward()
        part.backward()
        total = part.detach().clone()
        dist.all_reduce(total)
        close("loss", total / (1 if layout.attention_dp else tp), loss.detach())
        reduce_gradients(model)
        last = f"model.layers.{sizes.num_hidden_layers}."
        grads_of(
            model,
            {n.replace(last, "model.mtp."): p.grad for n, p in whole.named_parameters()
             if p.grad is not None},
            layout,
        )  # fmt: skip
        with torch.no_grad():
            for parameters in (owned(model), whole.parameters()):
                for parameter in parameters:
                    if parameter.grad is not None:
                        parameter.sub_(0.5 * parameter.grad)
        gather_parameters(model)
        for parameters in (model.parameters(), whole.parameters()):
            for parameter in parameters:
                parameter.grad = None


def serving(precision: str, tp: int, ep: int, redundant: int) -> None:
    """A prefill and a decode step, with redundant experts."""
    config = FP8 if precision == "fp8" else V3
    sizes = Config.from_hf(config)
    whole = build(sizes, precision=precision, device="cpu").init_weights(0).prepare_decode()
    layout = Layout(**groups(tp, ep), redundant_experts=redundant)
    dtype = torch.bfloat16 if precision == "fp8" else torch.float32
    model = ParallelDeepSeek(
        sizes, Precision(dtype, fp8=precision == "fp8"), layout, device="cpu"
    ).eval()
    state = whole.state_dict()
    local = {path: cut(path, tensor, layout) for path, tensor in state.items()}
    model.load_state_dict(local)
    model.model.fill_inv_freq()
    model.prepare_decode()
    ids = torch.randint(0, sizes.vocab_size, (WORLD // tp, 2, SEQ + 1))
    dist.broadcast(ids, 0)
    ids = ids[dist.get_rank() // tp]
    caches = [KVCache(sizes, 2, SEQ + 1, dtype=dtype, device="cpu") for _ in range(2)]
    with torch.no_grad():
        for part in (ids[:, :SEQ], ids[:, SEQ:]):
            got = model.whole_logits(model(part, caches[0]))
            # Quantised rows are the same wherever they are quantised; sums differ in order only.
            close("logits", got.float(), whole(part, caches[1]).float(),
                  1e-4 if dtype == torch.float32 else 2e-2)  # fmt: skip


def context_prefill(precision: str) -> None:
    """Every rank's own logits, and its own tokens in its cache."""
    sizes = Config.from_hf(FP8 if precision == "fp8" else V3)
    dtype = torch.bfloat16 if precision == "fp8" else torch.float32
    whole = build(sizes, precision=precision, device="cpu").init_weights(0)
    layout = Layout(**groups(1, 1, WORLD))
    precise = Precision(dtype, fp8=precision == "fp8")
    model = ParallelDeepSeek(sizes, precise, layout, device="cpu").eval()
    model.load_state_dict(whole.state_dict())
    model.model.fill_inv_freq()
    ids = torch.randint(0, sizes.vocab_size, (2, SEQ), generator=torch.Generator().manual_seed(2))
    mine = chunks(WORLD, dist.get_rank())
    caches = [KVCache(sizes, 2, n, dtype=dtype, device="cpu") for n in (len(mine), SEQ)]
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    with torch.no_grad():
        expected = whole(ids, caches[1])[:, mine].float()
        close("logits", model(ids[:, mine], caches[0]).float(), expected, tolerance)
    for layer, latent in caches[0].latents.items():
        whole_latent = caches[1].latents[layer][:, mine]
        close(f"cache of layer {layer}", latent.float(), whole_latent.float(), tolerance)


def fp8_training() -> None:
    """FP8 out and BF16 back: input gradients as without parallelism, weight gradients nearly."""
    sizes = Config.from_hf(FP8)
    whole = build(sizes, precision="fp8", training=True, device="cpu").init_weights(0)
    layout = Layout(**groups(1, 4))
    precision = Precision(torch.bfloat16, fp8=True, training=True)
    model = ParallelDeepSeek(sizes, precision, layout, device="cpu").train()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            parameter.copy_(cut(path, whole.get_parameter(path), layout))
    model.shard_()
    ids = torch.randint(0, sizes.vocab_size, (4, 1, 32), generator=torch.Generator().manual_seed(1))
    expected = whole(ids.flatten(0, 1))
    expected.float().square().mean().backward()
    logits = model(ids[dist.get_rank()])
    close("logits", logits.detach().float(), expected[dist.get_rank()].detach().float(), 2e-2)
    (logits.float().square().mean() / 4).backward()
    reduce_gradients(model)
    for path, parameter in model.named_parameters():
        if parameter.requires_grad:
            # Tiles of tokens for weight gradients are cut elsewhere: each rounds to 3 bits.
            grad = cut(path, whole.get_parameter(path).grad, layout).float()
            error = (parameter.grad.float() - grad).norm() / grad.norm()
            assert error < 0.06, f"{path}: {error:.3f}"


def pipeline() -> None:
    """Four stages of one layer each, forward and backward, over `send` and `receive`."""
    sizes = Config.from_hf({**V3, "num_hidden_layers": WORLD})
    whole = build(sizes, precision="fp32", training=True, device="cpu").init_weights(0)
    rank = dist.get_rank()
    line = Group(dist.new_group(list(range(WORLD))).group_name, WORLD, rank)
    precision = Precision(torch.float32, training=True)
    model = ParallelDeepSeek(
        sizes, precision, Layout(), layers=range(rank, rank + 1), device="cpu"
    ).train()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            parameter.copy_(whole.get_parameter(path.replace("layers.0.", f"layers.{rank}.")))
    ids = torch.randint(0, 96, (BATCH, SEQ), generator=torch.Generator().manual_seed(1))
    x = ids
    if rank:
        x = torch.empty(BATCH * SEQ, sizes.hidden_size, requires_grad=True)
        x = receive(x * 1.0, rank - 1, line)
    y = model(x, shape=(BATCH, SEQ))
    expected = whole(ids)
    expected.square().mean().backward()
    if rank == WORLD - 1:
        close("logits", y.detach(), expected.detach())
        y.square().mean().backward()
    else:
        sent = send(y, rank + 1, line)
        sent.backward(torch.full_like(sent, float("nan")))
    for path, parameter in model.named_parameters():
        if parameter.requires_grad:
            other = whole.get_parameter(path.replace("layers.0.", f"layers.{rank}."))
            close(path, parameter.grad, other.grad)


def pipeline_mtp() -> None:
    """Three layers over four stages, the last of which has norm, MTP module and head; both ends
    have the embedding, whose gradients are summed.
    """
    sizes = Config.from_hf(V3)
    whole = build(sizes, precision="fp32", training=True, mtp=True, device="cpu").init_weights(0)
    rank, main = dist.get_rank(), sizes.num_hidden_layers
    line = Group(dist.new_group(list(range(WORLD))).group_name, WORLD, rank)
    ends = dist.new_group([0, WORLD - 1])  # every process makes it, two are in it
    layout = Layout()
    if rank in (0, WORLD - 1):
        layout = Layout(embedding=Group(ends.group_name, 2, int(rank > 0)))
    model = ParallelDeepSeek(
        sizes, Precision(torch.float32, training=True), layout, layers=range(rank, rank + 1),
        mtp=True, device="cpu",
    ).train()  # fmt: skip
    first = rank if rank < main else main
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            wide = in_whole(path.replace("layers.0.", f"layers.{first}."), main)
            parameter.copy_(whole.get_parameter(wide))
    model.shard_()
    ids = torch.randint(0, 96, (BATCH, SEQ + 1), generator=torch.Generator().manual_seed(1))
    x, after = ids[:, :-1], ids[:, 1:]
    expected = whole(x, next_ids_BS=after)
    sum(y.square().mean() for y in expected).backward()
    if rank:
        x = receive(
            torch.empty(BATCH * SEQ, sizes.hidden_size, requires_grad=True) * 1.0, rank - 1, line
        )
    if rank == WORLD - 1:
        made = model(x, shape=(BATCH, SEQ), next_ids_BS=after)
        for y, wanted in zip(made, expected, strict=True):
            close("logits", y.detach(), wanted.detach())
        sum(y.square().mean() for y in made).backward()
    else:
        sent = send(model(x, shape=(BATCH, SEQ)), rank + 1, line)
        sent.backward(torch.full_like(sent, float("nan")))
    reduce_embedding(model)
    for path, parameter in model.named_parameters():
        if parameter.requires_grad:
            other = in_whole(path.replace("layers.0.", f"layers.{first}."), main)
            close(path, parameter.grad, whole.get_parameter(other).grad)


OTHERS = {
    "serving ep4": lambda: serving("fp32", 1, 4, 0),
    "serving ep4 redundant": lambda: serving("fp32", 1, 4, 8),
    "serving tp2 ep4": lambda: serving("fp32", 2, 4, 0),
    "serving fp8 ep4 redundant": lambda: serving("fp8", 1, 4, 4),
    "prefill cp4": lambda: context_prefill("fp32"),
    "prefill fp8 cp4": lambda: context_prefill("fp8"),
    "fp8 training": fp8_training,
    "pipeline": pipeline,
    "pipeline mtp": pipeline_mtp,
}


def main(rank: int, folder: str) -> None:
    """Run every case; what went wrong in each, or nothing, goes to a file."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD,
        timeout=datetime.timedelta(seconds=180),
    )  # fmt: skip
    cases = {name: (lambda case=case: training(*case)) for name, case in CASES.items()}
    results = {}
    try:
        for name, run in {**cases, **OTHERS}.items():
            try:
                run()
                results[name] = ""
            except Exception as error:
                wrong = isinstance(error, AssertionError)
                results[name] = str(error) if wrong else traceback.format_exc()
                break  # the ranks are out of step
    finally:
        Path(folder, f"rank{rank}.json").write_text(json.dumps(results))
        dist.destroy_process_group()
