"""Kafka's compression codecs with a limit on what comes out: 1 MB of gzip may hold a gigabyte of zeros.

Invariant: never holds more than ``max_bytes`` (and one block) of what a batch unpacks to; more is TooMuch, other damage ValueError or what
the codec's library raises. Cost: that of the libraries. Source: https://kafka.apache.org/documentation/#recordbatch (attributes, bits 0-2) and, for
snappy's two forms, https://github.com/xerial/snappy-java#compatibility-notes
"""

import io
import struct
import zlib
from collections.abc import Iterator

import lz4.frame
import snappy
import zstandard

ZSTD_WINDOW_BYTES = 2**27
"""A window that every zstd takes."""
_ZSTD_HEADER_BYTES = 18
_XERIAL = b"\x82SNAPPY\x00"
_XERIAL_HEADER_BYTES = 16


class TooMuch(ValueError):
    """A batch unpacks to more than is allowed."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"the batch unpacks to more than {max_bytes:,} bytes (formats.max_batch_unpacked_bytes)")


def unpack(codec: int, data: bytes | memoryview, max_bytes: int) -> bytes:
    """What the data unpacks to. Raises TooMuch, ValueError, and the errors of zlib, snappy, lz4 and zstandard."""
    match codec:
        case 1:  # gzip
            found = _gunzip(data, max_bytes)
        case 2:  # snappy
            found = b"".join(_unsnapped(bytes(data), max_bytes))
        case 3:  # lz4
            found = lz4.frame.LZ4FrameDecompressor().decompress(bytes(data), max_length=max_bytes + 1)
        case 4:  # zstd
            with _zstd_decompressor(data, max_bytes).stream_reader(io.BytesIO(data), read_across_frames=True) as reader:
                found = reader.read(max_bytes + 1)
        case _:
            raise ValueError(f"there is no codec {codec}")
    if len(found) > max_bytes:
        raise TooMuch(max_bytes)
    return found


def _zstd_decompressor(data: bytes | memoryview, max_bytes: int) -> zstandard.ZstdDecompressor:
    """Takes windows as wide as what may come out: the window is memory too. Raises ValueError for a wider one, which zstd refuses without advice."""
    widest = max(ZSTD_WINDOW_BYTES, 1 << (max_bytes - 1).bit_length())
    window = zstandard.get_frame_parameters(bytes(data[:_ZSTD_HEADER_BYTES])).window_size
    if window > widest:
        raise ValueError(
            f"its zstd window of {window:,} bytes is wider than the {widest:,} that are taken (formats.max_batch_unpacked_bytes); "
            "produce with a zstd level below 20 and without long-distance matching, or raise the setting"
        )
    return zstandard.ZstdDecompressor(max_window_size=widest)


def _gunzip(data: bytes | memoryview, max_bytes: int) -> bytes:
    """All members of a gzip file."""
    pieces: list[bytes] = []
    left = max_bytes + 1
    rest = bytes(data)
    while rest and left > 0:
        member = zlib.decompressobj(wbits=31)
        pieces.append(member.decompress(rest, left))
        left -= len(pieces[-1])
        if not member.eof and left > 0:
            raise ValueError("the gzip data is cut off")
        rest = member.unused_data
    return b"".join(pieces)


def _unsnapped(data: bytes, max_bytes: int) -> Iterator[bytes]:
    """The blocks: one, or with the framing of Java's library many. Each says its size, which is not allocated before it is checked."""
    left = max_bytes
    for block in _snappy_blocks(data):
        size = _snappy_size(block)
        if size > left:
            raise TooMuch(max_bytes)
        left -= size
        yield snappy.decompress(block)


def _snappy_blocks(data: bytes) -> Iterator[bytes]:
    if not data.startswith(_XERIAL):
        yield data
        return
    at = _XERIAL_HEADER_BYTES
    while at < len(data):
        (size,) = struct.unpack_from(">i", data, at)
        if not 0 < size <= len(data) - at - 4:
            raise ValueError(f"a snappy block of {size} bytes does not fit")
        yield data[at + 4 : at + 4 + size]
        at += 4 + size


def _snappy_size(block: bytes) -> int:
    """What a block says that it unpacks to: a varint."""
    size = 0
    for place, byte in enumerate(block[:5]):
        size |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return size
    raise ValueError("a snappy block without a size")
