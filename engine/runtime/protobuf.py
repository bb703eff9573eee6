"""Protocol Buffers' wire format: the fields of a message, read and written without its schema."""

from __future__ import annotations

import struct
from collections.abc import Iterator


def fields_of(data: memoryview) -> Iterator[tuple[int, int | memoryview, memoryview]]:
    """(field number, value, all bytes of the field) of one message. Values: a view for length-delimited fields, else an
    integer. Raises ValueError where the message is not well-formed."""
    at = 0
    while at < len(data):
        start = at
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value, data[start:at]
            continue
        if wire == 2:
            length, at = _varint(data, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} is not used by ONNX")
        end = at + length
        if end > len(data):
            raise ValueError("a field is longer than its message")
        value_of = data[at:end]
        yield number, value_of if wire == 2 else int.from_bytes(value_of, "little"), data[start:end]
        at = end


def message_field(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return _varint_bytes(number << 3 | 2) + _varint_bytes(len(content)) + content


def integer_field(number: int, value: int) -> bytes:
    """A field of an integer ≥ 0."""
    return _varint_bytes(number << 3) + _varint_bytes(value)


def float_field(number: int, value: float) -> bytes:
    """A field of a float32."""
    return _varint_bytes(number << 3 | 5) + struct.pack("<f", value)


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The variable-length integer at `at` and the position behind it."""
    if at < len(data) and data[at] < 0x80:  # as nearly all are
        return data[at], at + 1
    value = 0
    for i in range(10):
        if at + i >= len(data):
            break
        byte = data[at + i]
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, at + i + 1
    raise ValueError("an integer is cut off")


def _varint_bytes(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
