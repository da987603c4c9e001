"""Weights of a model that is served in another format than it is trained in."""

from tracer.report.blocks import Text, blocks_of
from tracer.report.data import tables_of
from tracer.report.sections import build
from tracer.run import answer, parser

COMMAND = (
    "--hf-config deepseek-ai/DeepSeek-V3 --layers 4 --dtype fp8 --batch 2 --seq 128 --context 128 "
    "--exec efficient"
)


def test_weights_are_shown_as_they_are_served():
    """A byte an element in FP8, not the BF16 that the training step holds."""
    study = answer(parser().parse_args(COMMAND.split()), "tracer")
    sections = build(study)
    tables = {t.name: t for t in tables_of(sections)}
    formats = {name: (numel, held) for name, numel, held in tables["parameters_by_dtype"].rows}
    numel, held = formats["float8_e4m3fn"]
    assert numel == held > 0.8 * study.inventory.parameters
    stored = tables["parameters_by_dtype"].total
    assert stored[1] == study.inventory.parameters
    assert tables["modules"].total[-1] == stored[2]
    # Buffers: an FP32 a block of 128 x 128, 1 / 4096 of the FP8 bytes, and what absorbed attention
    # multiplies with, in each of 4 layers kv_b_proj in BF16.
    absorbed = 4 * (128 * (128 + 128) * 512) * 2
    scales = study.inventory.weight_bytes - stored[2] - absorbed
    assert 1 < scales / (numel / 4096) < 1.03
    (text,) = (b.text for b in blocks_of(sections)
               if isinstance(b, Text) and "trainable" in b.text)  # fmt: skip
    trained = study.steps[0].trace
    assert trained.header["phase"] == "training"
    as_trained = sum(p.nbytes for p in trained.parameters if not p.buffer)
    assert as_trained - stored[2] == numel  # BF16: a byte more of each FP8 element
    assert text.endswith(f"In training they take {as_trained:,} bytes.")
