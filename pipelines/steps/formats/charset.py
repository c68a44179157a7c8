"""Bytes -> text, in whatever character set they are.

Asked in this order: a byte order mark; UTF-16 and UTF-32 told by their nulls (what is full of nulls and is neither, is no text); escape sequences
of ISO-2022; UTF-8 if the bytes are that, whatever was declared (other sets hardly ever are, by chance); UTF-8 with some damage; then what the
producer declared, what the page says in its first kilobyte, and a detector (resiliparse's, a Rust uchardet; Windows-1252 for what is mostly ASCII
and unknown to it). Of these the first whose text makes sense counts, else the one that makes most sense (plausible.py).

Invariant: an answer holds at most the allowed share of U+FFFD for bytes that are in no set, and is not nonsense; where no set gives that,
EnvelopeError. Names are read as browsers do: GBK means GB18030, Latin-1 means Windows-1252 (https://encoding.spec.whatwg.org/#names-and-labels).
Cost: UTF-8 at memory speed; other sets 5-8 MB/s, over at most DETECTED_BYTES.
Measured (benchmarks/charset.py, 22 sets of 12 languages, mean of the shares of texts that come out as they were) at 60 / 200 / 2,000 characters:
.986 / .994 / .994; the detector alone .873 / .885 / .894, chardet 7 .991 / .986 / .972 at 0.3 MB/s, charset-normalizer .809 / .901 / .915. Chinese,
Japanese and Korean 1.0; the weakest are Polish and Turkish (.89 to .97), whose sets differ from the Western one in a few letters.
"""

import codecs
import re
from typing import NoReturn

from resiliparse.parse.encoding import detect_encoding

from pipelines.steps.formats.plausible import MAX_NONSENSE, nonsense
from schemas.errors import EnvelopeError
from schemas.settings_formats import FormatsSettings

DETECTED_BYTES = 64 * 2**10
"""What the detector sees of a text: from a little before the first byte that is not UTF-8."""
_CONTEXT_BYTES = 1024
_NAMED = re.compile(rb"""<meta[^>]{1,200}charset\s*=\s*["']?\s*([A-Za-z0-9_:.-]{1,40})""", re.IGNORECASE)
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, with whose mark it begins
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (b"\x84\x31\x95\x33", "gb18030"),
)
"""Byte order marks. One other than UTF-8's counts only if at most _MAX_WITHOUT_MEANING of the characters are private-use or U+FFFD."""
_UTF16_SAMPLE = 4096
_USUAL = re.compile(r"[\t\n\r -~\xa0-\u052f\u0590-\u06ff\u0900-\u0eff\u1e00-\u1fff\u2010-\u2027\u3000-\u30ff\u4e00-\u9fff\uac00-\ud7a3\uff00-\uffef]")
"""Characters that texts are made of. Of UTF-16 read in the wrong order, or of other bytes read as UTF-16, many are outside."""
_MIN_USUAL = 0.97
_NO_MEANING = re.compile("[\\ue000-\\uf8ff\\ufffd]")
_MAX_WITHOUT_MEANING = 0.1
"""Windows-1251 text that begins with яю looks like UTF-16 and decodes to private-use characters; UTF-16 that begins with U+0000 looks like
UTF-32 and decodes to U+FFFD.
"""
_DOS = re.compile(r"cp(437|7\d\d|8(?!66|74)\d\d)")
"""Sets from before the web; the detector takes short Western texts for them. Browsers read none of these."""
_ASCII = bytes(range(128))
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\r"))
MAX_WESTERN = 0.3
"""Western texts have at most this share of bytes beyond ASCII."""
_SUPERSETS = {
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "iso8859-1": "cp1252",
    "ascii": "cp1252",
    "shift_jis": "cp932",
    "big5": "big5hkscs",
    "euc_kr": "cp949",
    "iso8859-9": "cp1254",
    "tis-620": "cp874",
    "iso2022_jp": "iso2022_jp_ext",
}
"""What browsers read under a name is the larger set; keys are the names of Python's codecs."""
_WIDE = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
_DAMAGEABLE = frozenset({"utf-8", *_WIDE, "gb18030", "big5hkscs", "cp932", "euc_jp", "cp949", "iso2022_jp_ext", "iso2022_kr"})
"""Sets in which some byte sequences are no character; in the others a byte without a meaning says that the text is in another set."""
MAX_DAMAGE = float(FormatsSettings.model_fields["max_damaged_fraction"].default)
_MAX_CHARACTER_BYTES = 4
_SENSE = MAX_NONSENSE / 2
"""Below this a text certainly makes sense, and no other set is tried."""
_ESCAPE = re.compile(rb"\x1b\$(?:[@B]|\)C)")
"""What begins two-byte characters in ISO-2022-JP and -KR."""
_NOT_TEXT = frozenset({"base64", "bz2", "hex", "quopri", "rot13", "uu", "zlib", "idna", "punycode", "unicode_escape", "raw_unicode_escape", "utf-7"})


def decode_text(data: bytes | memoryview, declared: str | None, max_damage: float = MAX_DAMAGE) -> str:
    """The text, without a byte order mark. At most ``max_damage`` of its characters, or one place, may be U+FFFD for bytes that are in no set.

    Raises EnvelopeError: not_utf8 if only UTF-8 was named, else bad_charset.
    """
    data = bytes(data)
    for mark, name in _MARKS:
        if data.startswith(mark) and (name == "utf-8" or _without_meaning(data, name) <= _MAX_WITHOUT_MEANING):
            return _repaired_or_error(data[len(mark) :], name, max_damage)
    named = codec(declared)
    certain = _wide(data) or _escaped(data, named)
    if certain and (text := _repaired(data, certain, max_damage)) is not None:
        return text.rstrip("\0")
    if _is_binary(data):
        _refuse(data, named or "utf-8", "a quarter of it and more is control characters, as in binary data")
    if (text := _decoded(data, "utf-8")) is not None:
        return text
    if _is_damaged_utf8(data):
        text = _decoded(data, named) if named not in (None, "utf-8") else None
        return text if text is not None and nonsense(text) <= _SENSE else _repaired_or_error(data, "utf-8", max_damage)
    return _guessed(data, named, max_damage)


def _guessed(data: bytes, named: str | None, max_damage: float) -> str:
    """The text in the first set that makes sense, of those that were named and detected. Raises EnvelopeError."""
    meta = _NAMED.search(data[:1024])
    names = dict.fromkeys((named, codec(meta[1].decode("ascii")) if meta else None, _detected(data)))
    texts = [text for name in names if name and (text := _repaired(data, name, max_damage)) is not None]
    scores = [nonsense(text) for text in texts]
    for text, score in zip(texts, scores, strict=True):
        if score <= _SENSE:
            return text
    best = min(range(len(texts)), key=scores.__getitem__, default=None)
    if best is not None and scores[best] <= MAX_NONSENSE:
        return texts[best]
    return _refuse(data, named or "utf-8", "what it says in the sets that fit is nonsense" if texts else "no other character set fits")


def codec(name: str | None) -> str | None:
    """Python's name of the codec; None if there is no such character set."""
    if not name:
        return None
    try:
        found = codecs.lookup(name.strip()).name
    except (LookupError, ValueError):  # ValueError: a name with a null character
        return None
    return None if found in _NOT_TEXT else _SUPERSETS.get(found, found)


def _wide(data: bytes) -> str | None:
    """UTF-16 or UTF-32 without a byte order mark, which is told by its nulls and by what it says; the detector does not know them.

    English and Russian in UTF-16 are UTF-8 too: every second byte is a control character. What is so full of them may end within a character.
    """
    if 0 not in data[:_UTF16_SAMPLE]:
        return None
    if not _is_binary(data) and (len(data) % 2 or _decoded(data, "utf-8") is not None):
        return None
    share, name = max((_usual(data, name), name) for name in _WIDE)
    return name if share >= _MIN_USUAL else None


def _is_binary(data: bytes) -> bool:
    """Whether the bytes hold nulls, and so many control characters that they are UTF-16, UTF-32 or no text, though they may be valid UTF-8."""
    sample = data[:_UTF16_SAMPLE]
    return sample.count(0) > 1 and len(sample.translate(None, _CONTROLS)) <= len(sample) * 3 / 4


def _escaped(data: bytes, named: str | None) -> str | None:
    """A set that is all ASCII to look at: ISO-2022, HZ (only if it was declared), and UTF-16 and -32 of ASCII that were declared."""
    if (found := _ESCAPE.search(data)) and data.isascii():
        return "iso2022_kr" if found[0].endswith(b"C") else "iso2022_jp_ext"
    is_wide = named is not None and named.startswith(("utf-16", "utf-32")) and 0 in data[:_UTF16_SAMPLE]
    return named if is_wide or (named == "hz" and b"~{" in data) else None


def _usual(data: bytes, name: str) -> float:
    """The share of the characters that texts are made of, if the data is in this set; what ends within a character counts without it."""
    width = 4 if "32" in name else 2
    text = data[: min(len(data) // width * width, _UTF16_SAMPLE)].decode(name, "replace").rstrip("\0")
    return 1 - len(_USUAL.sub("", text)) / len(text) if text else 0.0


def _without_meaning(data: bytes, name: str) -> float:
    """The share of characters without a meaning, if the data is in this set."""
    text = data[:_UTF16_SAMPLE].decode(name, "replace")
    return len(_NO_MEANING.findall(text)) / len(text)


def _detected(data: bytes) -> str | None:
    """The detector's guess; of what it does not know, what is mostly ASCII is Western.

    The detector knows EUC-KR only by the name that browsers do not use, hence html5_compatible=False.
    """
    sample = _sample(data).lstrip(codecs.BOM_UTF16)
    name = codec(detect_encoding(sample, html5_compatible=False))
    if name and not _DOS.fullmatch(name):
        return name
    return "cp1252" if len(sample.translate(None, _ASCII)) <= MAX_WESTERN * len(sample) else name


def _sample(data: bytes) -> bytes:
    """From a little before the first byte that is not UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        start = max(0, error.start - _CONTEXT_BYTES)
        return data[start : start + DETECTED_BYTES]
    return data[:DETECTED_BYTES]


def _is_damaged_utf8(data: bytes) -> bool:
    """Whether most characters beyond ASCII are there in UTF-8; in other sets hardly any is, by chance."""
    text = _sample(data).decode("utf-8", "replace")
    num_foreign = len(text) - len(text.encode("ascii", "ignore"))
    return num_foreign > 2 * text.count("\ufffd")


def _decoded(data: bytes, name: str) -> str | None:
    """None where the bytes are not in the set."""
    try:
        text = data.decode(name)
    except (UnicodeError, LookupError):  # LookupError: a codec that is no character set
        return None
    return text if text.isascii() or _is_text(text) else None


def _repaired(data: bytes, name: str, max_damage: float) -> str | None:
    """The text, some of it replaced; None where the bytes are not in the set, or more than the allowed share of the characters is damaged."""
    text = _decoded(data, name)
    if text is not None or name not in _DAMAGEABLE or not max_damage:
        return text
    text = data.decode(name, "replace")
    return text if text.count("\ufffd") <= max(_one_place(text), max_damage * len(text)) else None


def _one_place(text: str) -> int:
    """How many U+FFFD one bad byte may make: one for each byte of the character that it broke, side by side, in a text ten times as long."""
    size = min(_MAX_CHARACTER_BYTES, len(text) // 10)
    return max(1, size if text.rfind("\ufffd") - text.find("\ufffd") < size else 1)


def _is_text(text: str) -> bool:
    """Whether the text has a UTF-8 form: UTF-16 and -32 codecs may give half surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _repaired_or_error(data: bytes, name: str, max_damage: float) -> str:
    text = _repaired(data, name, max_damage)
    if text is not None:
        return text
    damaged = data.decode(name, "replace")
    share = damaged.count("\ufffd") / len(damaged)
    return _refuse(data, name, f"{share:.1%} of its characters are damaged, and formats.max_damaged_fraction allows {max_damage:.1%}")


def _refuse(data: bytes, name: str, why: str) -> NoReturn:
    """Raise the EnvelopeError for bytes that are not in this set, or nonsense in it."""
    try:
        data.decode(name)
    except UnicodeDecodeError as error:
        where = f"byte {error.start} is 0x{data[error.start]:02x}" if error.start < len(data) else "it ends within a character"
    except (UnicodeError, LookupError) as error:
        where = str(error)
    else:
        where = "the bytes are valid, but what they say is nonsense"
    if name == "utf-8":
        raise EnvelopeError("not_utf8", f"the text is not UTF-8 ({where}), and {why}; name its charset in the content type")
    raise EnvelopeError("bad_charset", f"the text is declared as {name} but does not fit it ({where}), and {why}")
