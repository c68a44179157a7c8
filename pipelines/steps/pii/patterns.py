"""What personal data and secrets look like: RE2 patterns (linear in the text, whatever the text), each tried in its windows only.

A pattern has one group, the match; what stands before it is part of the pattern (RE2 looks neither behind nor ahead), what stands behind it
is checked here. No pattern contains ``<`` or ``>``, so that a placeholder is never part of a match and every redaction shortens what is left.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import re2

from pipelines.steps.pii import checks, windows

PRIORITY = ("private_key", "jwt", "api_key", "password", "email", "iban", "resident_id", "bank_card", "credit_card", "phone", "ip")
"""Where matches overlap, the type that is named first wins; within a type the earlier match."""

_D = "[0-9０-９]"
_EDGE = "(?:^|[^0-9A-Za-z０-９_])"
_MAIL = "A-Za-z0-9Ａ-Ｚａ-ｚ０-９À-ÖØ-öø-ɏ"
_SEP = "[ .‐-―−ー－-]"
_DASH = "[‐-―−ー－-]"
_GAP = "[ \u3000‐-―−ー－-]"
_BEHIND = frozenset(b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_")
_FULL_DIGITS = tuple(chr(0xFF10 + i).encode() for i in range(10))

_EMAIL = f"(?:^|[^{_MAIL}._%+-])([{_MAIL}_][{_MAIL}._%+-]*[@＠](?:[{_MAIL}][{_MAIL}-]*[.．])+[A-Za-zＡ-Ｚａ-ｚ]{{2,24}})"
_MOBILE = f"[1１][3-9３-９]{_D}(?:{_D}{{8}}|{_SEP}{_D}{{4}}{_SEP}{_D}{{4}}|{_SEP}{_D}{{8}}|{_D}{{4}}{_SEP}{_D}{{4}})"
_AREA = "[0０](?:[1１][0０]|[2２][0-57-9０-５７-９]|[3-9３-９][0-9０-９]{2})"
_FIXED = f"(?:[(（]{_AREA}[)）][ -]?|{_AREA}{_SEP}{{1,2}})[2-8２-８]{_D}{{2,3}}[ -]?{_D}{{4}}(?:(?:-|转|分机| ?ext\\.? ?){_D}{{1,5}})?"
_NANP = "(?:[(][2-9][0-9]{2}[)] ?[2-9][0-9]{2}[-. ][0-9]{4}|[2-9][0-9]{2}(?:-[2-9][0-9]{2}-|[.][2-9][0-9]{2}[.])[0-9]{4})"
_AFTER = "(?:$|[^0-9０-９])"
_PHONES = (
    f"{_EDGE}([+＋][1１]{_SEP}?[(]?[2-9]{_D}{{2}}[)]?{_SEP}?{_D}{{3}}{_SEP}?{_D}{{4}}){_AFTER}",
    f"{_EDGE}((?:(?:[+＋]|00)?(?:86|８６){_SEP}?|[(（][+＋]?(?:86|８６)[)）] ?)?{_MOBILE}){_AFTER}",
    f"{_EDGE}((?:[+＋](?:86|８６){_SEP}?)?{_FIXED}){_AFTER}",
    f"{_EDGE}([+＋][1-9１-９](?:[ \u3000().（）‐-―−ー－-]{{0,3}}{_D}){{7,14}}){_AFTER}",
    f"{_EDGE}((?:1[-. ])?{_NANP}){_AFTER}",
)
_GROUPS = f"{_D}{{1,4}}{_GAP}{_D}{{3,4}}"
_AREA_IN_FRONT = f"[0０](?:{_D}{{1,4}}{_GAP}{_GROUPS}|[57-9５７-９][0０]{_D}{{8}})|[(（][0０]{_D}{{1,4}}[)）][ \u3000]?{_GROUPS}"
_EXCHANGE_IN_PARENTHESES = f"[0０]{_D}{{1,4}}[ \u3000]?[(（]{_D}{{1,4}}[)）][ \u3000]?{_D}{{3,4}}"
_TRUNK = f"{_EDGE}({_AREA_IN_FRONT}|{_EXCHANGE_IN_PARENTHESES}){_AFTER}"
_TRUNK_REGIONS = {"JP": 81, "KR": 82, "TW": 886}
"""Whose numbers are looked for as they are written at home, with their country codes; Chinese and North American ones have patterns of their own."""
_ID = f"{_EDGE}([1-9１-９]{_D}{{5}} ?[12１２]{_D}{{7}} ?{_D}{{3}}[0-9Xx０-９Ｘ]){_AFTER}"
_CARDS = (
    f"{_EDGE}([2-689２-６８９]{_D}{{13,18}}){_AFTER}",
    f"{_EDGE}([2-689２-６８９]{_D}{{3}}(?:[ -]{_D}{{4}}){{3}}(?:[ -]{_D}{{1,3}})?){_AFTER}",
    f"{_EDGE}(3[0-9]{{3}}[ -][0-9]{{6}}[ -][0-9]{{4,5}}){_AFTER}",
    f"{_EDGE}(6[0-9]{{5}}[ -][0-9]{{10,13}}){_AFTER}",
)
_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = f"(?:^|[^0-9A-Za-z_.])({_OCTET}(?:[.]{_OCTET}){{3}})(?:$|[^0-9A-Za-z_])"
_IBAN = "(?:^|[^0-9A-Za-z])([A-Z]{2}[0-9]{2} ?[A-Z0-9]{4}[A-Z0-9 ]{5,36})"
_AT_HOST = r"@(?:[a-z0-9\[]|[\pL\pN][\pL\pM\pN-]*\.[\pL\pN])"
_USER_INFO = r"""(?i)[a-z][a-z0-9+.-]{1,20}://[^\s/?#:@<>"']*:([!#$%&(-.0-;=@-\[\]-_a-z{|}~\pL\pM\pN]+)""" + _AT_HOST
"""The password before the host of a URL (RFC 3986: user information); ``/``, ``?``, quotes and the backslash are no part of it. Password
and host may hold letters of any script, as people write them (RFC 3987, IDNA); a sign beyond ASCII ends a URL. The length is checked in Python: with
{1,200} the pattern exceeds RE2's memory."""
_MAX_PASSWORD_CHARS, _SHOWN_HOST_BYTES = 200, 256
_HOST = re2.compile(f"(?i){_AT_HOST}".encode())
_PORT = re2.compile(b"[0-9]{2,5}[^\\x00-\\x7f]")
"""Taken for a port: two to five digits and a character beyond ASCII."""
_JWT = r"\b(eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*)"
_API_KEYS = (
    r"(?:A3T[A-Z0-9]|AKIA|ASIA|AROA|AIDA|ABIA|ACCA)[A-Z0-9]{16}",
    r"gh[pousr]_[A-Za-z0-9]{30,251}|github_pat_\w{22,251}|glpat-[\w-]{20,64}",
    r"xox[abeoprs]-[A-Za-z0-9-]{10,250}|xapp-[A-Za-z0-9-]{20,250}",
    r"AIza[\w-]{35}|GOCSPX-[\w-]{28}|ya29\.[\w-]{20,250}",
    r"sk-[\w-]{20,250}|[sr]k_(?:live|test)_[A-Za-z0-9]{16,128}",
    r"hf_[A-Za-z0-9]{30,64}|npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,250}|dop_v1_[a-f0-9]{64}|SG\.[\w-]{16,32}\.[\w-]{16,64}",
    r"LTAI[A-Za-z0-9]{12,30}|AKID[A-Za-z0-9]{32}|[0-9]{8,10}:AA[\w-]{33}",
)
_API_KEY = rf"(?:^|[^\w-])({'|'.join(_API_KEYS)})(?:$|[^\w-])"
_KEYWORDS = (
    r"passwords?|passwd|pwd|passphrase|(?:db|database|mysql|pg|redis|smtp|ftp|root|admin|user)[_-]?pass|"
    r"(?:client|app|aws|shared)?[_-]?secret(?:[_ -]?access)?(?:[_ -]?key)?|"
    r"(?:api|access|private|account|auth|encryption)[_ -]?key|"
    r"(?:auth|access|api|refresh|bearer|bot|session)[_-]?token|token|密码|口令|密钥"
)
_VALUE = r"[\w!#$%&*+./=?@^~|-]"
_PASSWORD = rf"""(?i)(?:{_KEYWORDS})["'\]]{{0,2}} ?(?:[:=]|：|＝)=? ?(?:"({_VALUE}{{6,160}})"|'({_VALUE}{{6,160}})'|({_VALUE}{{6,160}}))"""
_BLOCK_NAME = "(?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?"
_KEY_BLOCK = rf"(-----BEGIN {_BLOCK_NAME}-----(?:[\sA-Za-z0-9+/=\\:,.;()@\"'-]*?-----END {_BLOCK_NAME}-----|(?:[\s\\\"',+]*[A-Za-z0-9+/=]{{32,}})+))"

_FILE_ENDINGS = frozenset(
    (
        "png",
        "jpg",
        "jpeg",
        "gif",
        "svg",
        "webp",
        "ico",
        "bmp",
        "css",
        "js",
        "mjs",
        "ts",
        "json",
        "html",
        "htm",
        "md",
        "py",
        "php",
        "java",
        "go",
        "rs",
        "so",
        "dll",
        "exe",
        "zip",
        "gz",
    )
)
_RANDOM_CHARS = 32
"""A value of so many characters with small letters, capitals and digits is a secret, whatever words are in it."""
_NOT_PASSWORDS = ("example", "password", "changeme", "your", "string", "undefined", "xxxx", "****", "http")
_VERSION_WORD = re2.compile("(?i)(?:\\b(?:version|ver|v|build|release|rev|chapter|section|firmware)|版本号?|固件|章节?|第)[.:： ]{0,3}$")


class Match(NamedTuple):
    """One finding in one document."""

    start: int
    """First byte."""
    stop: int
    """Behind the last byte."""
    type: str
    """A name of PRIORITY, or what the operator's model says."""


Check = Callable[[bytes, int, int], tuple[int, str] | None]
"""Document, start, stop -> where the match ends, and its type; None if it is none after all."""


class Finder(NamedTuple):
    """How the types of one kind of window are found."""

    kind: int
    """Windows to look into: the kind."""
    marks: int
    """… and marks, all of which a window must have."""
    types: frozenset[str]
    """Types that it can find."""
    pattern: Any
    """RE2, over bytes."""
    check: Check


def find(document: bytes, finder: Finder, start: int, stop: int) -> Iterator[Match]:
    """All matches of one finder inside one window, from left to right, without overlaps."""
    at = start
    while (found := finder.pattern.search(document, at, stop)) is not None:
        begin, end = max(found.span(group) for group in range(1, finder.pattern.groups + 1))
        accepted = finder.check(document, begin, end)
        if accepted is not None:
            yield Match(begin, accepted[0], accepted[1])
        at = accepted[0] if accepted is not None else begin + 1


def _joined(document: bytes, at: int) -> bool:
    """Whether a letter, a digit or ``_`` follows, or a hyphen, point or slash with a digit behind it: the match is part of something longer."""
    following = document[at : at + 4]
    if not following:
        return False
    if following[0] in _BEHIND or following[:3] in _FULL_DIGITS:
        return True
    return following[0] in b"-." and following[1:2].isdigit()


def _continues(document: bytes, begin: int) -> bool:
    """Whether a plus sign, a word and a hyphen, or a digit and a point stand right before: the match is the tail of something longer."""
    before = document[max(begin - 2, 0) : begin]
    if len(before) < 2:
        return before == b"+"
    return before[1] == 0x2B or (before[1] == 0x2D and before[:1].isalnum()) or (before[1] == 0x2E and before[:1].isdigit())


def _is_in_groups(document: bytes, begin: int, end: int) -> bool:
    """Whether a match that is written in groups stands between more groups of digits: a part of a longer number."""
    match = document[begin:end]
    before, behind = document[max(begin - 2, 0) : begin], document[end : end + 2]
    return b" " in match and b"(" not in match and ((before[:1].isdigit() and before[1:] == b" ") or (behind[1:].isdigit() and behind[:1] == b" "))


def _email(document: bytes, begin: int, end: int) -> tuple[int, str] | None:
    local, domain = checks.plain(document[begin:end]).rsplit("@", 1)
    labels = domain.lower().split(".")
    if len(local) > 64 or len(domain) > 253 or "-." in domain:
        return None
    if _is_letter_or_digit(document, end) or labels[-1] in _FILE_ENDINGS or (len(labels) > 2 and labels[0].isdigit() and labels[1].isdigit()):
        return None
    is_remote = local == "git" and document[end : end + 1] in (b":", b"/")  # git@github.com:user/repository
    return None if is_remote else (end, "email")


def _is_letter_or_digit(document: bytes, at: int) -> bool:
    return document[at : at + 1].isalnum() or document[at : at + 1] in (b"_", b"@")


def _phone(document: bytes, begin: int, end: int) -> tuple[int, str] | None:
    signed = document[begin : begin + 1] == b"+" or document[begin : begin + 3] == "＋".encode()
    if _joined(document, end) or _continues(document, begin):
        return None
    if not signed and (_is_in_path(document, begin) or _is_in_groups(document, begin, end)):
        return None
    return (end, "phone") if len(set(checks.digits_of(document[begin:end]))) > 2 else None


def _international_phone(document: bytes, begin: int, end: int) -> tuple[int, str] | None:
    found = _phone(document, begin, end)
    return found if found and checks.is_international_phone(checks.plain(document[begin:end])) else None


def _trunk_phone(document: bytes, begin: int, end: int) -> tuple[int, str] | None:
    """A number with the zero that is dialled within a country: only if the number plan of one of the regions has it."""
    found = _phone(document, begin, end)
    return found if found and checks.is_national_phone(checks.plain(document[begin:end]), _TRUNK_REGIONS) else None


def _is_in_path(document: bytes, begin: int) -> bool:
    """Whether ``/`` stands before it, other than one that parts it from Chinese text or from another number."""
    before = document[max(begin - 2, 0) : begin]
    if before[-1:] in (b"#", b"$") or before[-2:] == "￥".encode()[-2:]:
        return True
    return before[-1:] == b"/" and (len(before) < 2 or not (before[:1].isdigit() or before[0] >= 0x80 or before[0] in b" >"))


def _resident_id(document: bytes, begin: int, end: int) -> tuple[int, str] | None:
    text = checks.plain(document[begin:end]).replace(" ", "")
    valid = not _joined(document, end) and not _continues(document, begin) and checks.is_resident_id(text)
    return (end, "resident_id") if valid else None


def _card(document: bytes, begin: int, end: int) -> tuple[int, str] | None:
    if _joined(document, end) or _continues(document, begin) or _is_in_groups(document, begin, end):
        return None
    name = checks.card_type(checks.digits_of(document[begin:end]))
    return (end, name) if name else None


def _ipv4(document: bytes, begin: int, end: int, *, with_private: bool) -> tuple[int, str] | None:
    before = document[max(begin - 24, 0) : begin].decode(errors="ignore")
    text = document[begin:end].decode()
    is_version = _VERSION_WORD.search(before) is not None or (before[-1:] == "/" and before[-2:-1].isalnum())
    octets = [int(part) for part in text.split(".")]
    is_heading = octets[0] != 10 and max(octets) < 32  # 14.3.4.2: one address in 4,000 looks so, and half of all dotted quads in manuals
    if is_version or is_heading or (document[end : end + 1] == b"." and document[end + 1 : end + 2].isdigit()) or _continues(document, begin):
        return None
    return (end, "ip") if checks.is_address(text, with_private=with_private) else None


def _ipv6(document: bytes, begin: int, end: int, *, with_private: bool) -> tuple[int, str] | None:
    before = document[max(begin - 1, 0) : begin]
    joined = before.isalnum() or before in (b":", b".", b"_") or document[end : end + 1].isalnum()
    text = document[begin:end].decode().rstrip(".")
    text = text[:-1] if text.endswith(":") and not text.endswith("::") else text
    is_assigned = with_private or text.startswith(("2", "3"))  # 2000::/3 is all that has been given out
    valid = not joined and is_assigned and text.count(":") > 1 and checks.is_address(text, with_private=with_private)
    return (begin + len(text), "ip") if valid else None


def _iban(document: bytes, begin: int, end: int) -> tuple[int, str] | None:
    length = checks.iban_length(document[begin:end].decode())
    return (begin + length, "iban") if length and not document[begin + length : begin + length + 1].isalnum() else None


def _api_key(document: bytes, begin: int, end: int) -> tuple[int, str] | None:
    body = document[begin:end]
    secret = body.rsplit(b"_", 1)[-1] if b"_" in body[:12] else body[3:]
    needs_digits = body.startswith((b"sk-", b"xox"))  # sk-loading-spinner is a class of a style sheet
    if len(set(secret)) < 8 or (needs_digits and sum(byte in b"0123456789" for byte in body) < 3):
        return None
    return end, "api_key"


def _always(name: str) -> Check:
    return lambda _document, _begin, end: (end, name)


def _password(document: bytes, begin: int, end: int) -> tuple[int, str] | None:
    """A value with digits and letters or signs, or a quoted one with letters and signs; no call, no path of names, no word that stands for one."""
    quoted = document[begin - 1 : begin] in (b'"', b"'")
    if not quoted:
        end = begin + len(document[begin:end].rstrip(b".,!?;"))
    value = document[begin:end].decode()
    lower = value.lower()
    if len(value) < 6 or document[end : end + 1] in (b"(", b"[", b"{", b"<") or lower.startswith(("$", "%", "{")):
        return None
    if not _is_random(value) and (lower.startswith(_NOT_PASSWORDS) or "example" in lower):
        return None
    has_digit, has_letter = any(char.isdigit() for char in value), any(char.isalpha() for char in value)
    names = value.replace("_", "a").split(".")
    if not quoted and len(names) > 1 and all(name.isalnum() and not name[0].isdigit() for name in names):
        return None
    has_sign = not value.replace("-", "").replace("_", "").replace(".", "").isalnum()
    digits_after_word = (
        has_digit
        and not has_letter
        and document[:begin].rstrip(b" :=\"'").lower().endswith((b"password", b"pwd", "密码：".encode(), "密码".encode()))
    )
    secret = (has_digit and (has_letter or has_sign)) or digits_after_word or (quoted and has_sign and has_letter)
    return (end, "password") if secret else None


def _is_random(value: str) -> bool:
    kinds = (str.islower, str.isupper, str.isdigit)
    return len(value) >= _RANDOM_CHARS and all(any(map(is_kind, value)) for is_kind in kinds)


def _url_password(document: bytes, begin: int, end: int) -> tuple[int, str] | None:
    """A password, unless it is a variable, nothing but stars, a port with text behind it; of at most _MAX_PASSWORD_CHARS."""
    text = document[begin:end].decode()
    if len(text) > _MAX_PASSWORD_CHARS:  # an address behind the URL may have been taken for its host
        most = len(text[: _MAX_PASSWORD_CHARS + 1].encode())
        hosts = [found.start() for found in _HOST.finditer(document[begin : begin + most + _SHOWN_HOST_BYTES])]
        end = begin + max((at for at in hosts if at < most), default=0)
    value = document[begin:end]
    is_port = _PORT.match(value) is not None
    is_variable = is_port or value[:1] in (b"$", b"{", b"[", b"(") or (value[:1] == b"%" and not value[1:3].isalnum())
    return None if is_variable or not value.strip(b"*x") else (end, "password")


def _compiled(*alternatives: str) -> Any:
    return [re2.compile(alternative.encode()) for alternative in alternatives]


@functools.cache
def finders(types: frozenset[str], with_private: bool) -> tuple[Finder, ...]:
    """What is needed to find these types. Patterns are compiled once per process."""
    table: list[tuple[int, int, tuple[str, ...], tuple[str, ...], Check]] = [
        (windows.KEY_BLOCK, 0, ("private_key",), (_KEY_BLOCK,), _always("private_key")),
        (windows.TOKEN, 0, ("jwt",), (_JWT,), _always("jwt")),
        (windows.TOKEN, 0, ("api_key",), (_API_KEY,), _api_key),
        (windows.ASSIGNMENT, 0, ("password",), (_PASSWORD,), _password),
        (windows.EMAIL, 0, ("password",), (_USER_INFO,), _url_password),
        (windows.EMAIL, 0, ("email",), (_EMAIL,), _email),
        (windows.IBAN, 0, ("iban",), (_IBAN,), _iban),
        (windows.NUMBER, windows.WIDE, ("resident_id",), (_ID,), _resident_id),
        (windows.NUMBER, windows.WIDE, ("bank_card", "credit_card"), _CARDS, _card),
        (windows.NUMBER, windows.SIGNED, ("phone",), (_PHONES[0], _PHONES[3]), _international_phone),
        (windows.NUMBER, windows.LONG, ("phone",), (_PHONES[1], _PHONES[2], _PHONES[4]), _phone),
        (windows.NUMBER, windows.LONG, ("phone",), (_TRUNK,), _trunk_phone),
        (windows.NUMBER, windows.DOTTED, ("ip",), (_IPV4,), functools.partial(_ipv4, with_private=with_private)),
        (windows.IPV6, 0, ("ip",), ("([0-9A-Fa-f:.]+)",), functools.partial(_ipv6, with_private=with_private)),
    ]
    wanted = [entry for entry in table if types.intersection(entry[2])]
    return tuple(
        Finder(kind, marks, frozenset(names), pattern, check) for kind, marks, names, patterns, check in wanted for pattern in _compiled(*patterns)
    )
