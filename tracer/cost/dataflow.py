"""Who wrote what an op reads: edges between ops, by storage, from dispatch order alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ..capture.records import Op

_SEARCH_LIMIT = 200  # ops looked at between a grouped matmul and the top-k in front of it


class Dataflow:
    """The producers of every op: `producers[i]` are the indices of the ops whose results it reads.

    A view is no producer: the op that wrote the storage is.
    """

    def __init__(self, ops: Sequence[Op]) -> None:
        self.ops = ops
        self.producers: list[tuple[int, ...]] = []
        writer: dict[int, int] = {}
        for index, op in enumerate(ops):
            inputs = {ref.storage for ref in op.inputs()}
            self.producers.append(
                tuple(sorted({writer[s] for s in inputs if s in writer and writer[s] != index}))
            )
            for out in op.outputs:
                if out.storage not in inputs:
                    writer[out.storage] = index
            for storage in op.mutates:
                writer[storage] = index

    def top_k(self, index: int) -> int | None:
        """How many experts a token chose: the k of the nearest top-k behind the integer inputs.

        A grouped matmul gets its group offsets as integers, and they descend from the routing
        decision; with group-limited routing the final choice is the nearest one.
        """
        op = self.ops[index]
        offsets = {ref.storage for ref in op.inputs() if ref.dtype in ("int32", "int64")}
        queue = deque(
            i for i in self.producers[index] if offsets & {o.storage for o in self.ops[i].outputs}
            or offsets & set(self.ops[i].mutates)
        )  # fmt: skip
        seen: set[int] = set(queue)
        while queue and len(seen) < _SEARCH_LIMIT:
            at = queue.popleft()
            op = self.ops[at]
            if (
                "all_to_all" in op.name or "alltoall" in op.name
            ):  # rows of many ranks: each chose one of the experts here
                continue
            if op.overload_packet == "aten.topk":
                k = op.args[1] if len(op.args) > 1 else op.kwargs.get("k")
                return int(k) if k is not None else None
            for before in self.producers[at]:
                if before not in seen:
                    seen.add(before)
                    queue.append(before)
        return None
