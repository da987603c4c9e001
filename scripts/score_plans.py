"""Priced plans beside published and measured steps; `--write` puts the tables into docs/plans.md.

    python scripts/score_plans.py --data DIR [--write docs/plans.md]

DIR has `training_steps.csv` and `serving_tpot.csv` (the folder of `tracer.validate --data`); rows
that need them are left out where it is absent. DeepSeek's figures are restated in `plan_scores`
with their sources. No constant was fitted to any of these rows.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from plan_scores.rows import deepseek, table
from plan_scores.serving import (
    deepseek_serving,
    layer_table,
    llama_decode_rows,
    routing_table,
    service_table,
    serving_rows,
)
from plan_scores.training import (
    bubble_of,
    deepseek_assumes,
    deepseek_mtp,
    deepseek_rows,
    deepseek_splits,
    deepseek_training,
    deepseek_variants,
    dualpipe,
    llama_training_rows,
)

from tracer.predict.detail import training_detail
from tracer.predict.training import TrainingStep


def slots_of(step: TrainingStep) -> str:
    """What runs alone, what overlaps and the step, in seconds."""
    names = (("1F", "F"), ("1B", "I"), ("1W", "W"), ("F&B", "F&B"))
    slots = [f"{name} {step.slots[key]:.2f}" for name, key in names]
    return f"{', '.join(slots)}, the step {step.seconds:.2f} s"


def page(data: Path | None) -> str:
    """docs/plans.md."""
    prose = (Path(__file__).parent / "plans_page.md").read_text()
    measured = data is not None and (data / "training_steps.csv").exists()
    step = deepseek_training()
    # A whole backward (B) in 1B, not split: as many weight gradients less in 1W.
    kinds = Counter(a.kind for mine in dualpipe().actions for a in mine)
    moved = step.slots["W"] * kinds["B"] / (kinds["B"] + kinds["W"])
    whole, split = step.slots["I"] + moved, step.slots["W"] - moved
    each = len(dualpipe().actions)
    gradient = step.slots["W"] * each / (kinds["B"] + kinds["W"])  # of the weights of a stage
    ends = training_detail(deepseek(), step, deepseek_assumes()).memories[0]
    left = step.memory.capacity - step.memory.reserve - step.memory.total
    tokens = 15360 * 4096
    prefill = {row.what: row for row in serving_rows()}
    profile = next(iter(prefill.values()))
    report = deepseek_serving("h800_ib", "tp=4 sp dp=8 ep=32 redundant=32", "prefill", 4, 4096)
    parts: dict[str, Any] = {
        "deepseek_whole_error": f"{whole / 1.99 - 1:+.0%}",
        "deepseek_whole": f"{whole:.2f}",
        "deepseek_short": f"{1.99 + 0.48 - whole - split:.1f}",
        "deepseek_both": f"{step.slots['F&B'] / 13.95 - 1:+.1%}",
        "deepseek_plain": slots_of(deepseek_training(engine="traced")),
        "deepseek_lean": slots_of(step),
        "deepseek_split_error": f"{split / 0.48 - 1:+.0%}",
        "deepseek_split": f"{split:.2f}",
        "deepseek_gradient": f"{0.48 / (kinds['W'] / each) / gradient:.1f}",
        "deepseek_mtp": deepseek_mtp(),
        "deepseek_splits": deepseek_splits(),
        "deepseek_bubble": f"{bubble_of(step):.2f}",
        "deepseek_bubble_without": f"{bubble_of(deepseek_training(mtp=False)):.2f}",
        "deepseek_implied": f"{0.3894 * step.peak * 2048 * 19.926 / tokens / 1e9:.1f}",
        "deepseek_flops": f"{step.flops / step.tokens / 1e9:.1f}",
        "deepseek_flops_mtp": f"{(step.flops + step.flops_mtp) / step.tokens / 1e9:.1f}",
        "deepseek_ends": f"{ends.total / 1e9:.1f} GB: {ends}",
        "deepseek_left": f"{left / 1e9:.1f}",
        "prefill_busy": f"{profile.predicted:.1f}",
        "prefill_profile": f"{profile.published:.1f}",
        "prefill_report": f"{8e-3 * report.tokens_per_s_per_gpu:.1f}",
        "deepseek": table(deepseek_rows()),
        "deepseek_memory": f"{step.memory.total / 1e9:.1f} GB: {step.memory}",
        "deepseek_room": f"{step.memory.capacity / 1e9:.1f}e9",
        "deepseek_variants": deepseek_variants(),
        "deepseek_notes": "\n".join(f"* {note}" for note in step.notes),
        "llama_training": table(llama_training_rows(data)) if measured and data else "(no data)",
        "llama_decode": table(llama_decode_rows(data)) if measured and data else "(no data)",
        "serving": table(serving_rows()),
        "routing": routing_table(),
        "service": service_table(),
        "layer": layer_table(),
    }
    for name, text in parts.items():
        prose = prose.replace("{" + name + "}", text)
    return prose


def main() -> int:
    """Print, or write, the page."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    p.add_argument("--data", type=Path, help="folder of measured rows")
    p.add_argument("--write", type=Path, metavar="FILE", help="docs/plans.md")
    options = p.parse_args()
    text = page(options.data)
    if options.write:
        options.write.write_text(text)
        print(f"wrote {options.write}", file=sys.stderr)
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
