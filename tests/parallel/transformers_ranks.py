"""What each of two real processes does: its part of a model, held against the whole."""

from __future__ import annotations

import copy
import datetime
import json
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from transformers import LlamaConfig, MixtralConfig
from transformers.distributed.expert_parallel import apply_expert_parallelism

from tracer.capture import Capture
from tracer.capture.huggingface import HuggingFaceProgram
from tracer.capture.huggingface.context import POSITIONS, spread_over
from tracer.capture.huggingface.rank import Place, RankProgram
from tracer.capture.huggingface.stage import cut
from tracer.cost import price
from tracer.models.collectives import ALONE, Group

WORLD, BATCH, SEQ = 2, 2, 16
CHUNKS = ([*range(0, 4), *range(12, 16)], [*range(4, 12)])  # by rank


def llama():
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=64, initializer_range=0.3,
    )  # fmt: skip
    return HuggingFaceProgram("llama", config, "fp32")


def mixtral(dtype="fp32"):
    config = MixtralConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=64, num_local_experts=4, num_experts_per_tok=2,
        initializer_range=0.3,
    )  # fmt: skip
    return HuggingFaceProgram("mixtral", config, dtype)


def tokens(seed: int = 1):
    return torch.randint(0, 64, (BATCH, SEQ), generator=torch.Generator().manual_seed(seed))


def real(program):
    torch.manual_seed(0)
    model = program.module("training", "real")
    assert model.config._attn_implementation == "tracer"
    return model


def close(parameter, whole):
    scale = whole.abs().max()
    torch.testing.assert_close(parameter / scale, whole / scale, rtol=0, atol=1e-4)


def chunks_of_sequences(rank: int) -> None:
    """CP: logits, and gradients summed over the ranks."""
    model, ids = real(llama()), tokens()
    expected = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    expected.square().mean().backward()
    whole = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    own = ids[:, CHUNKS[rank]]
    with spread_over(Group(dist.group.WORLD.group_name, WORLD, rank)):
        positions = POSITIONS.tensor(BATCH, SEQ // WORLD, SEQ, "cpu")
        assert positions.tolist() == [CHUNKS[rank]] * BATCH
        mask = torch.ones_like(own)
        logits = model(input_ids=own, attention_mask=mask, position_ids=positions).logits
        torch.testing.assert_close(logits, expected[:, CHUNKS[rank]], rtol=1e-4, atol=1e-4)
        (logits.square().mean() / WORLD).backward()
    for name, parameter in model.named_parameters():
        dist.all_reduce(parameter.grad)
        close(parameter.grad, whole[name])


def stages_of_layers(rank: int) -> None:
    """PP: two layers and one. The last stage's logits; gradients of either stage's parameters."""
    program, ids = llama(), tokens()
    model = real(program)
    mask = torch.ones_like(ids)
    expected = model(input_ids=ids, attention_mask=mask).logits
    expected.square().mean().backward()
    layers = (range(2), range(2, 3))[rank]
    twin = cut(program, layers, first=rank == 0, last=rank == 1, fold=False).to_empty(device="cpu")
    there = dict(model.named_parameters())

    def name_there(name):
        parts = name.split(".")
        if parts[:2] == ["model", "layers"]:
            parts[2] = str(int(parts[2]) + layers.start)
        return ".".join(parts)

    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter.copy_(there[name_there(name)])
        for name, buffer in twin.named_buffers():
            buffer.copy_(dict(model.named_buffers())[name])
    place = Place(None, 1) if rank == 0 else Place(0, None)
    groups = {"pp": Group(dist.group.WORLD.group_name, WORLD, rank), "ep": ALONE, "dp": ALONE}
    stage = RankProgram(program, twin.train(), "real", place, groups)
    inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    out = stage._call(twin, inputs)
    if rank == 0:
        torch.autograd.backward(out.states, torch.empty_like(out.states))
    else:
        torch.testing.assert_close(out.logits, expected, rtol=1e-4, atol=1e-4)
        out.logits.square().mean().backward()
    for name, parameter in twin.named_parameters():
        close(parameter.grad, there[name_there(name)].grad)


def rows_of_experts(rank: int) -> dict[str, int]:
    """EP as transformers runs it, on real routing: bytes that this rank's collectives hand over."""
    model, ids = real(mixtral()), tokens(rank)
    expected = copy.deepcopy(model)(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    mesh = init_device_mesh("cpu", (WORLD, 1), mesh_dim_names=("ep", "tp"))
    plan = model._expand_parallel_plan(dict(model.ep_plan))
    apply_expert_parallelism(model, mesh["ep"], mesh["tp"], plan)
    with Capture(model) as capture:
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        logits.square().mean().backward()
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    found: dict[str, int] = {}
    for kernel in price(capture.trace).kernels:
        for nbytes in kernel.cost.messages.values():
            found[kernel.name] = found.get(kernel.name, 0) + nbytes
    return found


def main(rank: int, folder: str) -> None:
    """What went wrong, or nothing, and the messages of the experts go to a file."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD,
        timeout=datetime.timedelta(seconds=180),
    )  # fmt: skip
    result: tuple[str, dict[str, int]] = ("", {})
    try:
        chunks_of_sequences(rank)
        stages_of_layers(rank)
        result = ("", rows_of_experts(rank))
    except Exception:
        result = (traceback.format_exc(), {})
    finally:
        Path(folder, f"rank{rank}.json").write_text(json.dumps(result))
        dist.destroy_process_group()
