"""Collectives: what a message is, in bytes, and to whom it goes.

A collective moves data between GPUs. It has a *message*, filed under its process group, and no
memory traffic: the reads and writes of device memory at both ends are part of the time that the
network model states for a message (as measured bus bandwidths include them), so the roofline does
not charge them a second time.

The message is the size that benchmarks of collectives are quoted by: the whole tensor of an
all-reduce or broadcast, the gathered side of an all-gather or reduce-scatter, all rows that a rank
hands to an all-to-all, those for itself included. What of it crosses a link, (n-1)/n or twice as
much, is for the network model to say.
"""

from __future__ import annotations

from typing import Any

from ...capture.records import TensorRef
from ..registry import cost
from ..work import COLLECTIVE, COPY, FREE, Work
from .common import Out, Refs, nbytes


def message(size: int, group: Any) -> Work:
    """A message of `size` bytes in `group`; the reduction's adds are the network's business."""
    return Work(kind=COLLECTIVE, message=size, group=str(group))


@cost("_c10d_functional::all_reduce", "_c10d_functional::all_reduce_")
def all_reduce(input: TensorRef, reduce_op: str, group_name: str, *, out: Out) -> Work:
    """Message: the tensor."""
    return message(input.nbytes, group_name)


@cost("_c10d_functional::all_reduce_coalesced", "_c10d_functional::all_reduce_coalesced_")
def all_reduce_coalesced(inputs: Refs, reduce_op: str, group_name: str, *, out: Out) -> Work:
    """Message: all tensors."""
    return message(nbytes(inputs), group_name)


@cost(
    "_c10d_functional::all_gather_into_tensor", "_c10d_functional::all_gather_into_tensor_out",
    "_c10d_functional_autograd::all_gather_into_tensor",
)  # fmt: skip
def all_gather(input: TensorRef, group_size: int, group_name: str, *, out: Out) -> Work:
    """Message: the gathered tensor."""
    return message(group_size * input.nbytes, group_name)


@cost("_c10d_functional::all_gather_into_tensor_coalesced")
def all_gather_coalesced(inputs: Refs, group_size: int, group_name: str, *, out: Out) -> Work:
    """Message: all gathered tensors."""
    return message(group_size * nbytes(inputs), group_name)


@cost(
    "_c10d_functional::reduce_scatter_tensor", "_c10d_functional::reduce_scatter_tensor_out",
    "_c10d_functional_autograd::reduce_scatter_tensor",
)  # fmt: skip
def reduce_scatter(
    input: TensorRef, reduce_op: str, group_size: int, group_name: str, *, out: Out
) -> Work:
    """Message: the tensor before it is scattered."""
    return message(input.nbytes, group_name)


@cost("_c10d_functional::reduce_scatter_tensor_coalesced")
def reduce_scatter_coalesced(
    inputs: Refs, reduce_op: str, group_size: int, group_name: str, *, out: Out
) -> Work:
    """Message: all tensors before they are scattered."""
    return message(nbytes(inputs), group_name)


@cost(
    "_c10d_functional::all_to_all_single", "_c10d_functional_autograd::all_to_all_single",
)  # fmt: skip
def all_to_all(
    input: TensorRef, output_split_sizes: Any, input_split_sizes: Any, group_name: str, *, out: Out
) -> Work:
    """Message: all rows that this rank hands over."""
    return message(input.nbytes, group_name)


@cost("_dtensor::shard_dim_alltoall")
def shard_dim_alltoall(
    input: TensorRef, gather_dim: int, shard_dim: int, group_name: str, *, out: Out
) -> Work:
    """Message: the local shard, all of which is cut anew."""
    return message(input.nbytes, group_name)


@cost("_c10d_functional::broadcast", "_c10d_functional::broadcast_")
def broadcast(input: TensorRef, src: int, group_name: str, *, out: Out) -> Work:
    """Message: the tensor."""
    return message(input.nbytes, group_name)


@cost("_c10d_functional::isend", "_c10d_functional::irecv")
def functional_point_to_point(
    tensor: TensorRef, peer: int, tag: int, group_name: str, *, out: Out
) -> Work:
    """Message: the tensor."""
    return message(tensor.nbytes, group_name)


@cost(
    "_c10d_functional::wait_tensor", "_c10d_functional::_wrap_tensor_autograd", "c10d::barrier",
    "c10d::monitored_barrier_",
)  # fmt: skip
def wait(tensor: TensorRef, *rest: Any, out: Out) -> Work:
    """Free: a point in time."""
    return Work(kind=FREE)


# -- the older, in-place ops of `torch.distributed`, whose groups are noted by name ---------------


@cost("c10d::allreduce_", "c10d::allreduce_coalesced_", "c10d::reduce_", "c10d::broadcast_")
def whole_tensors(tensors: Refs, process_group: str, *rest: Any, out: Out) -> Work:
    """Message: all tensors."""
    return message(nbytes(tensors), process_group)


@cost("c10d::send", "c10d::recv_", "c10d::recv_any_source_")
def point_to_point(tensors: Refs, process_group: str, *rest: Any, out: Out) -> Work:
    """Message: all tensors."""
    return message(nbytes(tensors), process_group)


@cost("c10d::_allgather_base_")
def all_gather_base(
    output_tensor: TensorRef, input_tensor: TensorRef, process_group: str, *rest: Any, out: Out
) -> Work:
    """Message: the gathered tensor."""
    return message(output_tensor.nbytes, process_group)


@cost("c10d::_reduce_scatter_base_", "c10d::alltoall_base_")
def handed_over(
    output: TensorRef, input: TensorRef, process_group: str, *rest: Any, out: Out
) -> Work:
    """Message: the input."""
    return message(input.nbytes, process_group)


@cost("c10d::allgather_into_tensor_coalesced_", "c10d::allgather_", "c10d::allgather_coalesced_")
def gathered_lists(outputs: Any, inputs: Refs, process_group: str, *rest: Any, out: Out) -> Work:
    """Message: all gathered tensors."""
    return message(nbytes(_flat(outputs)), process_group)


@cost("c10d::reduce_scatter_tensor_coalesced_", "c10d::reduce_scatter_", "c10d::alltoall_")
def handed_over_lists(outputs: Any, inputs: Any, process_group: str, *rest: Any, out: Out) -> Work:
    """Message: all inputs."""
    return message(nbytes(_flat(inputs)), process_group)


@cost("c10d::gather_", "c10d::scatter_")
def rooted(outputs: Any, inputs: Any, process_group: str, *rest: Any, out: Out) -> Work:
    """Message: the side that holds all parts, which is the root's."""
    return message(max(nbytes(_flat(outputs)), nbytes(_flat(inputs))), process_group)


# -- around the collectives of `fully_shard` -------------------------------------------------------


@cost("fsdp::split_with_sizes_copy", "fsdp::chunk_cat")
def repacked(tensors: Any, *rest: Any, out: Out) -> Work:
    """No arithmetic: parameters out of a gathered buffer, gradients into one."""
    return Work(kind=COPY)


def _flat(tree: Any) -> Refs:
    if type(tree) is TensorRef:
        return (tree,)
    return tuple(ref for item in tree for ref in _flat(item))
