"""KV caches in FP8 where they were traced in a wider type: what a server's cache dtype does.

A row (a head of a token, or MLA's latent) is E4M3 with an FP32 scale for every 128 elements, or
for all of a shorter one; what a longer row has beyond whole groups stays as it is. MLA's 512
latents and 64 rotary elements are 512 + 4·4 + 64·2 = 656 B, the layout of FlashMLA's FP8 cache; a
head of 128 is 132 B. Products stay as they were traced: kernels widen what they load. States of
recurrences are no caches and stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from ..algebra import sample
from ..capture.records import TensorRef, Trace
from .traffic import Traffic

_GROUP, _SCALE = 128, 4  # elements; bytes


def fp8_caches(
    trace: Trace, moved: Sequence[Traffic], fused: bool
) -> tuple[Trace, dict[int, Fraction]]:
    """`trace` with its caches in FP8, and the part of their bytes that is left, by storage.

    Args:
        trace: of a model that has caches.
        moved: by op, as the trace has them.
        fused: whether attention is one op: then a cache is what such an op reads. Else it is what a
            decode step does not write as a whole, and in a prefill all that is kept.
    """
    kept = {s for s, record in enumerate(trace.storages) if record.role == "kv"}
    widest: dict[int, TensorRef] = {}
    attended, written = set[int](), dict[int, float]()
    for op, traffic in zip(trace.ops, moved, strict=True):
        for item in traffic.writes:
            written[item.storage] = written.get(item.storage, 0) + sample(item.nbytes)
        attends = "attention" in op.overload_packet
        for ref in (*op.inputs(), *op.outputs):
            if ref.storage in kept:
                if attends:
                    attended.add(ref.storage)
                known = widest.get(ref.storage)
                if known is None or sample(ref.numel) > sample(known.numel):
                    widest[ref.storage] = ref
    if fused:
        states = set(widest) - attended
    elif trace.header.get("phase") == "decode":
        states = {s for s, ref in widest.items() if written.get(s, 0) >= sample(ref.nbytes)}
    else:
        states = set()
    shares = {s: Fraction(1) if s in states else _share(ref) for s, ref in widest.items()}
    # Caches of folded layers are there, but no op touches them: they are as their like.
    alike = {sample(trace.storages[s].nbytes): share for s, share in shares.items()}
    rest = max(shares.values(), default=Fraction(1))
    shares |= {s: alike.get(sample(trace.storages[s].nbytes), rest) for s in kept - set(shares)}
    storages = [
        replace(record, nbytes=round(record.nbytes * shares[s])) if s in shares else record
        for s, record in enumerate(trace.storages)
    ]
    return replace(trace, storages=storages), shares


def _share(ref: TensorRef) -> Fraction:
    """Bytes of a row in FP8 over those it was traced with."""
    row = int(sample(ref.shape[-1]))
    if row < _GROUP:
        small = row + _SCALE
    else:
        groups, rest = divmod(row, _GROUP)
        small = groups * (_GROUP + _SCALE) + rest * ref.itemsize
    return min(Fraction(small, row * ref.itemsize), Fraction(1))
