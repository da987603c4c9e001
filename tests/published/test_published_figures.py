"""Every figure of `published_figures.toml`, measured on the built model or on its trace."""

import functools
import json
import tempfile
import tomllib
from pathlib import Path

import pytest
import torch
from transformers_configs import TRANSFORMERS
from vision_models import VISION

import tracer
from tracer.capture import Capture, Trace
from tracer.capture.program import Program, load_program
from tracer.capture.workload import Workload, record
from tracer.cost import Conventions, price
from tracer.models import build, bundled_config
from tracer.predict import take_inventory
from tracer.predict.inventory import Inventory

FIGURES = tomllib.loads(Path(__file__).with_name("published_figures.toml").read_text())


@functools.cache
def program(model: str) -> Program:
    if model not in TRANSFORMERS:
        return load_program(model)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(TRANSFORMERS[model]))
        return load_program(folder)


@functools.cache
def inventory(model: str) -> Inventory:
    """Read from a prefill of 16 tokens: parameters are shapes, whatever runs."""
    return take_inventory(record(program(model), Workload("prefill", batch=1, seq=16)), 16)


@functools.cache
def vision_session(model: str) -> tracer.Session:
    with torch.device("meta"), torch.no_grad():
        network = VISION[model]().eval()
        with tracer.trace(network) as session:
            network(torch.empty(1, 3, 224, 224))
    return session


def parameters(model: str) -> int:
    if model in VISION:
        trace = vision_session(model).trace
        return sum(p.numel for p in trace.parameters if not p.buffer)
    return inventory(model).parameters


def elements(trace: Trace, suffix: str) -> int:
    """Elements of the parameters whose name ends so."""
    return sum(p.numel for p in trace.parameters if p.name.endswith(suffix))


def parameters_without_gate_bias(model: str) -> int:
    trace = record(program(model), Workload("prefill", batch=1, seq=16))
    return parameters(model) - elements(trace, "mlp.gate.e_score_correction_bias")


def active(model: str) -> int:
    return inventory(model).active_parameters


def active_without_embedding(model: str) -> int:
    trace = record(program(model), Workload("prefill", batch=1, seq=16))
    return active(model) - elements(trace, "embed_tokens.weight")


@functools.cache
def mtp_trace(model: str) -> Trace:
    """A forward through the main model and its MTP layer, which shares embedding and head."""
    network = build(bundled_config(model), mtp=True)
    ids = torch.zeros(1, 16, dtype=torch.long, device="meta")
    with torch.no_grad(), Capture(network) as capture:
        network(ids, next_ids_BS=ids)
    return capture.trace


def mtp(model: str) -> int:
    """Unique parameters: those of the model with MTP that the model without it has not."""
    return take_inventory(mtp_trace(model), 16).parameters - parameters(model)


def mtp_without_projection(model: str) -> int:
    return mtp(model) - elements(mtp_trace(model), "eh_proj.weight")


def mtp_active_without_projection(model: str) -> int:
    trace = mtp_trace(model)
    own = take_inventory(trace, 16).active_parameters - active(model)
    shared = elements(trace, "embed_tokens.weight") + elements(trace, "lm_head.weight")
    return own + shared - elements(trace, "eh_proj.weight")


def kv_bytes(model: str) -> int:
    return inventory(model).kv_bytes_per_token


def training_flops_per_token(model: str, seq: int, causal: str = "pairs") -> float:
    """Traced forward and backward, without the products of the router."""
    trace = record(program(model), Workload("training", batch=1, seq=seq, optimizer="none"))
    ledger = price(trace, Conventions(causal=causal))
    modules = ledger.by(lambda kernel, part: part.module)
    router = sum(c.total_flops for path, c in modules.items() if path.endswith(".mlp.gate"))
    return (ledger.total().total_flops - router) / seq


def multiply_adds(model: str) -> int:
    return vision_session(model).flops // 2


MEASURES = {
    "parameters": parameters,
    "parameters as printed": parameters,
    "parameters without gate bias": parameters_without_gate_bias,
    "active parameters": active,
    "active parameters as printed": active,
    "active parameters without embedding as printed": active_without_embedding,
    "MTP parameters": mtp,
    "MTP parameters as printed": mtp_without_projection,
    "MTP active parameters as printed": mtp_active_without_projection,
    "KV bytes a token": kv_bytes,
    "multiply-adds": multiply_adds,
}
SEQUENCE = {"DeepSeek": 4096, "Llama": 8192}  # tokens of the published training runs


def measure(figure: str, model: str) -> float:
    name, what = figure.split(" ", 1)
    if what.startswith("training FLOP a token"):
        causal = "full" if what.endswith("without causality") else "pairs"
        return training_flops_per_token(model, SEQUENCE[name.split("-")[0]], causal)
    return MEASURES[what](model)


@pytest.mark.parametrize("figure", FIGURES)
def test_published_figure(figure):
    entry = FIGURES[figure]
    found = measure(figure, entry["model"])
    assert abs(found - entry["value"]) <= entry["tolerance"], f"{found:,} against {entry}"


def test_every_figure_is_complete():
    """A source and a reason each, no table that is not a figure, and tolerances that bite."""
    for name, entry in FIGURES.items():
        assert set(entry) == {"model", "value", "tolerance", "source", "reason"}, name
        assert entry["tolerance"] <= 0.05 * entry["value"], name
        assert len(entry["source"]) > 10 and len(entry["reason"]) > 10, name


def test_every_measure_is_used():
    used = {name.split(" ", 1)[1] for name in FIGURES}
    assert set(MEASURES) <= used
