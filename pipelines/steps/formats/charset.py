"""Bytes -> text, in whatever character set they are.

Asked in this order: a byte order mark, UTF-16 told by its nulls, what the producer declared, UTF-8 if the bytes are that, what the page says
in its first kilobyte, and a detector (resiliparse's, a Rust uchardet; Windows-1252 for what is mostly ASCII and unknown to it). A set that was
declared and does not fit is not trusted: the next is asked. UTF-8 with some damage is not read as something else.

Invariant: every answer decodes all bytes strictly; where none does, EnvelopeError. Names are read as browsers do: GBK means GB18030, Latin-1
means Windows-1252 (https://encoding.spec.whatwg.org/#names-and-labels).
Cost: UTF-8 at memory speed; without a declaration 6-8 MB/s, over at most DETECTED_BYTES.
Measured (benchmarks/charset.py, 22 sets of 12 languages, mean of the shares of texts that come out as they were) at 60 / 200 / 2,000 characters:
.987 / .994 / .993; the detector alone .871 / .886 / .893, chardet 7 .991 / .986 / .971 at 1 MB/s, charset-normalizer .813 / .907 / .916. Chinese,
Japanese and Korean 1.0; the weakest are Polish and Turkish (.89 to .97), whose sets differ from the Western one in a few letters.
"""

import codecs
import re

from resiliparse.parse.encoding import detect_encoding

from schemas.errors import EnvelopeError

DETECTED_BYTES = 64 * 2**10
"""What the detector sees of a text: from a little before the first byte that is not UTF-8."""
_CONTEXT_BYTES = 1024
_NAMED = re.compile(rb"""<meta[^>]{1,200}charset\s*=\s*["']?\s*([A-Za-z0-9_:.-]{1,40})""", re.IGNORECASE)
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_UTF16_SAMPLE = 4096
_USUAL = re.compile(r"[\t\n\r -~\xa0-\u052f\u0590-\u06ff\u0900-\u0eff\u1e00-\u1fff\u2010-\u2027\u3000-\u30ff\u4e00-\u9fff\uac00-\ud7a3\uff00-\uffef]")
"""Characters that texts are made of. Of UTF-16 read in the wrong order, or of other bytes read as UTF-16, many are outside."""
_MIN_USUAL = 0.97
_PRIVATE = re.compile("[\\ue000-\\uf8ff]")
_MAX_PRIVATE = 0.1
"""In Windows-1251 яю is a byte order mark, and what follows it is in the private use area."""
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
}
"""What browsers read under a name is the larger set; keys are the names of Python's codecs."""
_NOT_TEXT = frozenset({"base64", "bz2", "hex", "quopri", "rot13", "uu", "zlib", "idna", "punycode", "unicode_escape", "raw_unicode_escape", "utf-7"})


def decode_text(data: bytes | memoryview, declared: str | None) -> str:
    """The text, without a byte order mark. Raises EnvelopeError: not_utf8 if only UTF-8 was named, else bad_charset."""
    data = bytes(data)
    for mark, name in _MARKS:
        if data.startswith(mark) and (name == "utf-8" or _private(data, name) <= _MAX_PRIVATE):
            return _decoded_or_error(data[len(mark) :], name)
    tried = [name for name in (_utf16(data), codec(declared), "utf-8") if name]
    for name in dict.fromkeys(tried):
        if (text := _decoded(data, name)) is not None:
            return text
    named = _NAMED.search(data[:1024])
    guesses = [codec(named[1].decode("ascii")) if named else None, _detected(data)]
    for guess in guesses:
        if guess and guess not in tried and (text := _decoded(data, guess)) is not None:
            return text
    return _decoded_or_error(data, codec(declared) or "utf-8")


def codec(name: str | None) -> str | None:
    """Python's name of the codec; None if there is no such character set."""
    if not name:
        return None
    try:
        found = codecs.lookup(name.strip()).name
    except (LookupError, ValueError):  # ValueError: a name with a null character
        return None
    return None if found in _NOT_TEXT else _SUPERSETS.get(found, found)


def _utf16(data: bytes) -> str | None:
    """UTF-16 without a byte order mark, which is told by its nulls and by what it says; the detector does not know it.

    English and Russian in UTF-16 are UTF-8 too: every second byte is a control character.
    """
    sample = data[:_UTF16_SAMPLE]
    if 0 not in sample or len(data) % 2:
        return None
    num_controls = len(sample) - len(sample.translate(None, _CONTROLS))
    if num_controls < len(sample) / 4 and _decoded(data, "utf-8") is not None:
        return None
    share, name = max((_usual(sample, name), name) for name in ("utf-16-be", "utf-16-le"))
    return name if share >= _MIN_USUAL else None


def _usual(data: bytes, name: str) -> float:
    """The share of the characters that texts are made of, if the data is in this set."""
    text = data[:_UTF16_SAMPLE].decode(name, "replace")
    return 1 - len(_USUAL.sub("", text)) / max(1, len(text))


def _private(data: bytes, name: str) -> float:
    """The share of characters without a meaning, if the data is in this set."""
    text = data[:_UTF16_SAMPLE].decode(name, "replace")
    return len(_PRIVATE.findall(text)) / len(text)


def _detected(data: bytes) -> str | None:
    """The detector's guess; of what it does not know, what is mostly ASCII is Western. Damaged UTF-8 is nothing else.

    The detector knows EUC-KR only by the name that browsers do not use, hence html5_compatible=False.
    """
    start = max(0, _first_not_utf8(data) - _CONTEXT_BYTES)
    sample = data[start : start + DETECTED_BYTES].lstrip(codecs.BOM_UTF16)
    if _is_damaged_utf8(sample):
        return None
    name = codec(detect_encoding(sample, html5_compatible=False))
    if name and not _DOS.fullmatch(name):
        return name
    return "cp1252" if len(sample.translate(None, _ASCII)) <= MAX_WESTERN * len(sample) else name


def _first_not_utf8(data: bytes) -> int:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start
    return 0


def _is_damaged_utf8(sample: bytes) -> bool:
    """Whether most characters beyond ASCII are there in UTF-8; in other sets hardly any is, by chance."""
    text = sample.decode("utf-8", "replace")
    num_foreign = sum(not character.isascii() for character in text)
    return num_foreign > 2 * text.count("\ufffd")


def _decoded(data: bytes, name: str) -> str | None:
    """None where the bytes are not in the set, or only if control characters belonged to it."""
    try:
        text = data.decode(name)
    except (UnicodeError, LookupError):  # LookupError: a codec that is no character set
        return None
    return text if text.isascii() or _is_text(text) else None


def _is_text(text: str) -> bool:
    """Whether the text has a UTF-8 form: UTF-16 and -32 codecs may give half surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _decoded_or_error(data: bytes, name: str) -> str:
    text = _decoded(data, name)
    if text is not None:
        return text
    try:
        data.decode(name)
    except UnicodeDecodeError as error:
        where = f"byte {error.start} is 0x{data[error.start]:02x}" if error.start < len(data) else "it ends within a character"
    except (UnicodeError, LookupError) as error:
        where = str(error)
    else:
        where = "it holds half of a surrogate pair"
    if name == "utf-8":
        raise EnvelopeError("not_utf8", f"the text is not UTF-8 ({where}) and no other character set fits; name its charset in the content type")
    raise EnvelopeError("bad_charset", f"the text is not {name}, which it is said to be ({where}), and no other character set fits")
