"""How many parameters an ONNX file holds, read from its bytes: onnxruntime does not tell.

A walk over Protocol Buffers' wire format (tag = field number << 3 | wire type) along the fields that ONNX's onnx.proto
gives: ModelProto.graph 7, GraphProto.initializer 5, TensorProto.dims 1 and .data_type 2.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from pathlib import Path

_GRAPH, _INITIALIZER, _DIMS, _DATA_TYPE = 7, 5, 1, 2
#: TensorProto.DataType of what is learned: float, float16, double, bfloat16. Shapes and indices are int64.
_FLOATS = {1, 10, 11, 16}


def count_parameters(path: Path) -> int | None:
    """The numbers in all float initializers of the main graph, or None for what is no ONNX file. Weights in Constant
    nodes are not seen."""
    try:
        with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
            total = 0
            for field, kind, start, stop in _fields(data, 0, len(data)):
                if (field, kind) == (_GRAPH, 2):
                    for inner, inner_kind, a, b in _fields(data, start, stop):
                        if (inner, inner_kind) == (_INITIALIZER, 2):
                            total += _numbers(data, a, b)
            return total
    except (OSError, ValueError, IndexError):
        return None


def _numbers(data: mmap.mmap, start: int, stop: int) -> int:
    dims: list[int] = []
    data_type = 0
    for field, kind, a, b in _fields(data, start, stop):
        if field == _DIMS and kind == 0:
            dims.append(_varint(data, a)[0])
        elif field == _DIMS and kind == 2:  # packed
            while a < b:
                value, a = _varint(data, a)
                dims.append(value)
        elif field == _DATA_TYPE and kind == 0:
            data_type = _varint(data, a)[0]
    return math.prod(dims) if data_type in _FLOATS else 0


def _fields(data: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(field number, wire type, start, stop) of the value of each field of a message."""
    while position < end:
        tag, position = _varint(data, position)
        kind = tag & 7
        if kind == 0:
            stop = _varint(data, position)[1]
        elif kind == 1:
            stop = position + 8
        elif kind == 2:
            length, position = _varint(data, position)
            stop = position + length
        elif kind == 5:
            stop = position + 4
        else:
            raise ValueError(f"wire type {kind}")
        if stop > end:
            raise ValueError("a field is longer than its message")
        yield tag >> 3, kind, position, stop
        position = stop


def _varint(data: mmap.mmap, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("number of more than 64 bits")
