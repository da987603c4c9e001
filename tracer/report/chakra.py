"""A trace as a Chakra host execution trace (MLCommons), the JSON that PyTorch's
`ExecutionTraceObserver` writes, for simulators that read it.

Nodes are the ops under one node a module call, as the observer nests them. Node ids count from 1;
tensors are (id, storage id, offset in elements, elements, bytes an element, device).
"""

from __future__ import annotations

from typing import Any

from ..capture.records import Op, TensorRef, Trace

SCHEMA = "1.1.1-chakra.0.0.4"

_TYPES = {
    "float32": "float", "float64": "double", "float16": "c10::Half", "bfloat16": "c10::BFloat16",
    "int64": "long int", "int32": "int", "int16": "short int", "int8": "signed char",
    "uint8": "unsigned char", "bool": "bool", "float8_e4m3fn": "c10::Float8_e4m3fn",
    "float8_e5m2": "c10::Float8_e5m2",
}  # fmt: skip


def chakra_trace(trace: Trace) -> dict[str, Any]:
    """The execution trace as a JSON document; `times` > 1 marks ops of folded layers."""
    root = 1
    nodes = [_node(root, f"[{trace.header.get('model', 'model')}]", root, _values([]), _values([]))]
    call_node: dict[int, int] = {}
    for op in trace.ops:
        parent = root
        if op.call:
            if op.call not in call_node:
                call = trace.calls[op.call]
                call_node[op.call] = len(nodes) + 1
                name = f"nn.Module: {call.kind} {call.module}_{call.nth}"
                nodes.append(_node(len(nodes) + 1, name, root, _values([]), _values([])))
            parent = call_node[op.call]
        arguments = [*op.args, *op.kwargs.values()]
        node = _node(
            len(nodes) + 1, _schema_name(op), parent, _values(arguments), _values(op.outputs)
        )
        node["attrs"] += [
            {"name": "op_schema", "type": "string", "value": op.name},
            {"name": "phase", "type": "string", "value": op.phase},
            {"name": "times", "type": "uint64", "value": op.times},
        ]
        nodes.append(node)
    return {"schema": SCHEMA, "pid": 0, "time": "", "start_ts": 0, "nodes": nodes, "finish_ts": 0}


def _node(
    number: int, name: str, parent: int, inputs: dict[str, Any], outputs: dict[str, Any]
) -> dict[str, Any]:
    return {
        "id": number,
        "name": name,
        "ctrl_deps": parent,
        "inputs": inputs,
        "outputs": outputs,
        "attrs": [{"name": "rf_id", "type": "uint64", "value": number}],
    }


def _schema_name(op: Op) -> str:
    return op.overload_packet.replace(".", "::", 1)


def _values(arguments: Any) -> dict[str, Any]:
    values, shapes, types, strides = [], [], [], []
    for argument in arguments:
        value, shape, kind, stride = _value(argument)
        values.append(value)
        shapes.append(shape)
        types.append(kind)
        strides.append(stride)
    return {"values": values, "shapes": shapes, "types": types, "strides": strides}


def _value(argument: Any) -> tuple[Any, Any, str, Any]:
    if type(argument) is TensorRef:
        ref = argument
        kind = f"Tensor({_TYPES.get(ref.dtype, ref.dtype)})"
        identity = [ref.storage, ref.storage, ref.offset, ref.numel, ref.itemsize, "meta"]
        return identity, list(ref.shape), kind, list(ref.stride)
    if isinstance(argument, tuple):
        parts = [_value(item) for item in argument]
        kind = f"GenericList[{','.join(part[2] for part in parts)}]"
        return [p[0] for p in parts], [p[1] for p in parts], kind, [p[3] for p in parts]
    names = {bool: "Bool", int: "Int", float: "Double", type(None): "None", str: "String"}
    text = "<None>" if argument is None else argument
    if isinstance(argument, complex):
        text = str(argument)
    return text, [], names.get(type(argument), "None"), []
