"""Token ids to text, one token at a time: no half characters, nothing after a stop string.

Invariant: the pieces that a TextStream returns, joined, are the UTF-8 decoding of the tokens' bytes (invalid bytes replaced by U+FFFD, an
unfinished last character left out), cut before the first stop string. Costs O(bytes) plus a search in the held-back tail per token.
Source: the byte alphabet of GPT-2's byte-level BPE; metaspace and <0xNN> pieces of SentencePiece.
"""

import codecs
import re
from collections.abc import Sequence
from functools import cache

from tokenizers import Tokenizer

_BYTE_PIECE = re.compile(r"^<0x([0-9A-F]{2})>\Z")


@cache
def _byte_alphabet() -> dict[str, int]:
    """The printable stand-in of every byte in byte-level vocabularies: printable Latin-1 stands for itself, the rest follows from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


def _byte_level(piece: str) -> bytes:
    alphabet = _byte_alphabet()
    return b"".join(bytes([alphabet[char]]) if char in alphabet else char.encode() for char in piece)


def _metaspace(piece: str) -> bytes:
    match = _BYTE_PIECE.match(piece)
    return bytes([int(match[1], 16)]) if match else piece.replace("\u2581", " ").encode()


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """Bytes of every token id of a tokenizer; special tokens, and ids that do not exist, have none."""
    convert = _byte_level if "ByteLevel" in repr(tokenizer.decoder) else _metaspace
    added = tokenizer.get_added_tokens_decoder()
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for piece, token_id in vocabulary.items():
        if token_id in added:
            table[token_id] = b"" if added[token_id].special else added[token_id].content.encode()
        else:
            table[token_id] = convert(piece)
    return table


def _held_back(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of ``text`` with which one of ``stops`` could begin."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        tail = text[-length:]
        if any(stop.startswith(tail) for stop in stops):
            return length
    return 0


class TextStream:
    """Text of one sequence as it grows."""

    def __init__(self, table: Sequence[bytes], stops: Sequence[str] = ()) -> None:
        self._table = table
        self._stops = tuple(stop for stop in stops if stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._pending = ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """The text that is safe to show now; sets ``stopped`` when a stop string is complete."""
        if self.stopped:
            return ""
        raw = self._table[token_id] if token_id < len(self._table) else b""
        self._pending += self._decoder.decode(raw)
        found = [position for stop in self._stops if (position := self._pending.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._release(min(found))
        return self._release(len(self._pending) - _held_back(self._pending, self._stops))

    def finish(self) -> str:
        """What was held back for a stop string that never came; an unfinished character is dropped."""
        return "" if self.stopped else self._release(len(self._pending))

    def _release(self, length: int) -> str:
        text, self._pending = self._pending[:length], self._pending[length:]
        return text
