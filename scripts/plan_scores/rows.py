"""A scored figure, tables of them, and the models that the rows price."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tabulate import tabulate

from tracer.capture.program import Program, load_program

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "hidden_act": "silu", "tie_word_embeddings": False, "num_key_value_heads": 8,
}  # fmt: skip
LLAMA_8B = {**LLAMA, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32}  # fmt: skip
LLAMA_70B = {**LLAMA, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
             "num_attention_heads": 64}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A figure: what was published or measured, what comes out here, and how near it should be."""

    what: str
    published: float
    predicted: float
    unit: str
    within: float | None  # share; None: for orientation

    @property
    def error(self) -> float:
        """Predicted over published, less one."""
        return self.predicted / self.published - 1

    def cells(self) -> list[str]:
        """A line of the table."""
        aim = "-" if self.within is None else f"{self.within:.0%}"
        if self.within is not None and abs(self.error) > self.within:
            aim += " MISSED"
        return [self.what, f"{self.published:,.4g}", f"{self.predicted:,.4g}", self.unit,
                f"{self.error:+.1%}", aim]  # fmt: skip


@cache
def llama(sizes: str) -> Program:
    """A Llama 3.1 by size, from its published config."""
    config = {"8b": LLAMA_8B, "70b": LLAMA_70B}[sizes]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"llama-3.1-{sizes}.json"
        path.write_text(json.dumps(config))
        return load_program(str(path))


@cache
def deepseek() -> Program:
    """DeepSeek-V3 in FP8."""
    return load_program("deepseek-ai/DeepSeek-V3", dtype="fp8")


def markdown(lines: list[list[Any]], head: list[str]) -> str:
    """A Markdown table of texts."""
    return tabulate(lines, head, tablefmt="github", disable_numparse=True)


def table(rows: list[Row]) -> str:
    """Rows as Markdown."""
    head = ["figure", "published", "predicted", "unit", "error", "within"]
    return markdown([r.cells() for r in rows], head)
