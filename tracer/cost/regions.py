"""Which elements of a storage a strided view touches, as far as it can be told from its numbers.

A view is a box if its strides nest (each stride steps over all that the smaller ones reach), which
slices, chunks and transposes of one tensor do. Of boxes over the same strides it can be said
whether one lies in the other or misses it. Of anything else nothing is claimed.
"""

from __future__ import annotations

from ..capture.records import TensorRef

Extents = dict[int, int]  # size by stride, for the dimensions that move in memory


def covers(big: TensorRef, small: TensorRef) -> bool:
    """Whether `big` surely touches every element that `small`, of the same storage, touches."""
    if big == small:
        return True
    if big.dtype != small.dtype or big.numel == 0:
        return False
    if small.numel == 0:
        return True
    outer, inner = _box(big), _box(small)
    if outer is None or inner is None or not set(inner) <= set(outer):
        return False
    corner = small.offset - big.offset
    if corner < 0:
        return False
    for stride in sorted(outer, reverse=True):  # the way between the corners, widest steps first
        steps, corner = divmod(corner, stride)
        if steps + inner.get(stride, 1) > outer[stride]:
            return False
    return corner == 0


def disjoint(a: TensorRef, b: TensorRef) -> bool:
    """Whether `a` and `b`, of the same storage, surely share no element."""
    if a.shape == b.shape and a.stride == b.stride and a.offset == b.offset:
        return a.numel == 0
    if a.numel == 0 or b.numel == 0:
        return True
    if a.dtype != b.dtype:
        return False
    if a.offset > b.offset:
        a, b = b, a
    if a.offset + span(a) <= b.offset:
        return True
    first, second = _box(a), _box(b)
    if first is None or second is None:
        return False
    corner = b.offset - a.offset
    widest: Extents = {}
    for extents in (first, second):
        for stride, size in extents.items():
            widest[stride] = max(widest.get(stride, 1), size)
    for stride in sorted(widest, reverse=True):
        steps, corner = divmod(corner, stride)
        # The steps hold only where both boxes together stay inside of the next wider stride.
        if steps >= first.get(stride, 1) and _fits(widest, stride, steps + second.get(stride, 1)):
            return True
    return False


def span(ref: TensorRef) -> int:
    """Elements from the first to the last one touched."""
    return 1 + sum((n - 1) * s for n, s in zip(ref.shape, ref.stride, strict=True))


def _fits(extents: Extents, stride: int, size: int) -> bool:
    wider = [other for other in extents if other > stride]
    return not wider or size * stride <= min(wider)


def _box(ref: TensorRef) -> Extents | None:
    """Size by stride if the strides nest, else None."""
    extents: Extents = {}
    for size, stride in zip(ref.shape, ref.stride, strict=True):
        if size > 1 and stride != 0:
            if stride < 0 or stride in extents:
                return None
            extents[stride] = size
    reach = 0
    for stride in sorted(extents):
        if stride <= reach:
            return None
        reach += (extents[stride] - 1) * stride
    return extents
