"""Reads TensorFlow's version-1 checkpoints (one `.ckpt` file) without TensorFlow.

Such a file is a LevelDB-style sorted table whose values are protocol buffers:

    data blocks | ... | index block | footer of 48 bytes: where the index is, and a magic number
    block = entries (key stored as what differs from the key before) | restart points | type byte | checksum

Source: the format comments of TensorFlow's `table_format`, `block` and `saved_tensor_slice.proto`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avis_stream.errors import CheckpointError

_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48
_DT_FLOAT = 1
_FLOAT_VALUES = 5
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types of protocol buffers


def read_tf_checkpoint(path: Path) -> dict[str, NDArray[np.float32]]:
    """All float32 variables of a checkpoint, by name.

    Raises:
        CheckpointError: No such checkpoint, compressed, sliced or cut short.
    """
    try:
        data = memoryview(path.read_bytes())
        return dict(_variables(data))
    except (OSError, ValueError, IndexError, KeyError, struct.error) as error:
        raise CheckpointError(f"{str(path)!r} cannot be read as a TensorFlow version-1 checkpoint: {error}") from error


def _variables(data: memoryview) -> Iterator[tuple[str, NDArray[np.float32]]]:
    if len(data) < _FOOTER_BYTES or struct.unpack("<Q", data[-8:])[0] != _MAGIC:
        raise ValueError("its magic number is missing; is the file complete, and the one called vggish_model.ckpt?")
    footer = data[-_FOOTER_BYTES:]
    at = 0
    handle = []
    for _ in range(4):  # offset and size of the meta index, then of the index
        value, at = _varint(footer, at)
        handle.append(value)
    shapes: dict[str, list[int]] = {}
    for _, block_handle in _entries(_block(data, handle[2], handle[3])):
        offset, at = _varint(block_handle, 0)
        size, _ = _varint(block_handle, at)
        for key, entry in _entries(_block(data, offset, size)):
            saved = dict(_fields(entry))  # SavedTensorSlices: 1 is the list of contents, 2 one slice of one variable
            if not key:  # the empty key sorts first, so shapes are known before values
                shapes = dict(_shapes(_message(saved[1])))
                continue
            parts = dict(_fields(_message(saved[2])))  # SavedSlice: 1 name, 2 slice, 3 values
            name = bytes(_message(parts[1])).decode()
            if name in shapes:
                yield name, _values(name, _message(parts[3]), shapes[name])


def _block(data: memoryview, offset: int, size: int) -> memoryview:
    if data[offset + size] != 0:
        raise ValueError("it is compressed, which checkpoints never are")
    return data[offset : offset + size]


def _entries(block: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    restarts = struct.unpack("<I", block[-4:])[0]
    end = len(block) - 4 * (restarts + 1)
    key, at = b"", 0
    while at < end:
        shared, at = _varint(block, at)
        fresh, at = _varint(block, at)
        size, at = _varint(block, at)
        key = key[:shared] + bytes(block[at : at + fresh])
        yield key, block[at + fresh : at + fresh + size]
        at += fresh + size


def _shapes(contents: memoryview) -> Iterator[tuple[str, list[int]]]:
    """Name and shape of the float32 variables in a `SavedTensorSliceMeta`."""
    for number, entry in _fields(contents):
        if number == 1:  # SavedSliceMeta: 1 name, 2 shape, 3 type
            parts = dict(_fields(_message(entry)))
            if parts.get(3) == _DT_FLOAT:
                shape = [_dimension(d) for n, d in _fields(_message(parts.get(2, memoryview(b"")))) if n == 2]
                yield bytes(_message(parts[1])).decode(), shape


def _values(name: str, tensor: memoryview, shape: list[int]) -> NDArray[np.float32]:
    """The values of a `TensorProto`, which in this place carries nothing else."""
    raw = b"".join(bytes(_message(value)) for number, value in _fields(tensor) if number == _FLOAT_VALUES)
    array: NDArray[np.float32] = np.frombuffer(raw, "<f4").astype(np.float32)
    if array.size != math.prod(shape):
        raise ValueError(f"{name} has {array.size} values where its shape {shape} wants {math.prod(shape)}")
    return array.reshape(shape)


def _dimension(message: int | memoryview) -> int:
    size = dict(_fields(_message(message))).get(1, 0)
    if not isinstance(size, int):
        raise ValueError("a dimension is no number")
    return size


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number stands where a message was expected")
    return value


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) of a protocol buffer, in order."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield number, value
        elif wire == _BYTES:
            size, at = _varint(message, at)
            yield number, message[at : at + size]
            at += size
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
            yield number, message[at : at + size]
            at += size
        else:
            raise ValueError(f"unknown wire type {wire}")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A variable-length number at `at`, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        shift += 7
        if byte < 0x80:
            return value, at
