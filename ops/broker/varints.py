"""Bounds on what kafka-python decodes from a request, because one thread serves everybody.

Its decoder reads varints without a limit: a megabyte of 0xff becomes one number of seven million bits, which takes minutes. And each struct with
tagged fields copies the whole rest of the request. Importing this module gives the decoders that kafka-python generates a limit of five bytes per
varint, as the protocol has it, and of MAX_TAGS_BYTES per struct. It must be imported before the first request is decoded: ``versions.py``, which
everything that decodes needs, does that, and a test decodes every request. Cost: one comparison per byte of a varint.
Source: https://kafka.apache.org/protocol#protocol_types (UNSIGNED_VARINT)
"""

from typing import Any

from kafka.protocol.schemas.fields.codecs.types import UnsignedVarInt32
from kafka.protocol.schemas.fields.struct import StructField

MAX_BYTES = 5
MAX_TAGS_BYTES = 1024
"""The tagged fields of requests are a few numbers and a cluster's id."""


def read_varint(data: memoryview, at: int) -> tuple[int, int]:
    """An unsigned varint and the position after it. Raises IndexError if it does not end in time."""
    value = 0
    for index in range(MAX_BYTES):
        byte = data[at + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + index + 1
    raise IndexError(f"a varint is longer than {MAX_BYTES} bytes")


def _emit_bounded(_codec: type, context: Any, name: str, indent: str) -> None:
    """Write the lines that read a varint into variable ``name``; the generated function has ``data`` and ``pos``."""
    byte, shift = context.next_var("byte"), context.next_var("shift")
    lines = (
        f"{name} = {shift} = 0",
        "while True:",
        f"    {byte} = data[pos]",
        "    pos += 1",
        f"    {name} |= ({byte} & 0x7f) << {shift}",
        f"    if {byte} < 0x80: break",
        f"    {shift} += 7",
        f"    if {shift} == {7 * MAX_BYTES}: raise IndexError('a varint is longer than {MAX_BYTES} bytes')",
    )
    for line in lines:
        context.emit(indent, line)


_emit_tags = StructField._emit_tagged_decode


def _emit_bounded_tags(struct: StructField, context: Any, name: str, indent: str, version: int) -> None:
    """The library's own lines, with a copy of so many bytes instead of one of all that follows."""
    start, before = len(context.lines), context.next_var("before")
    context.emit(indent, f"{before} = pos")
    _emit_tags(struct, context, name, indent, version)
    context.lines[start:] = [line.replace("data[pos:]", f"data[pos : pos + {MAX_TAGS_BYTES}]") for line in context.lines[start:]]
    context.emit(indent, f"if pos - {before} == {MAX_TAGS_BYTES}: raise IndexError('a struct has more than {MAX_TAGS_BYTES} bytes of tagged fields')")


StructField._emit_tagged_decode = _emit_bounded_tags
UnsignedVarInt32.emit_decode_from = classmethod(_emit_bounded)
