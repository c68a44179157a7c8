"""What a regular expression cannot say: checksums, dates, regions, lengths by country, and what stands around a match.

Everything here sees matches only, a few per document, so it is plain Python. ``digits`` are ASCII.
Sources: GB 11643-1999 (resident identity numbers), ISO/IEC 7812 (card numbers), ISO 13616 (IBAN), ITU-T E.164, RFC 6890 (special addresses).
"""

import datetime
import ipaddress

FULL_WIDTH = {0xFF01 + i: 0x21 + i for i in range(94)} | dict.fromkeys(range(0x2010, 0x2016), 0x2D)
"""Full-width forms as ASCII, dashes as hyphens."""

_REGIONS = frozenset(
    (
        "11",
        "12",
        "13",
        "14",
        "15",
        "21",
        "22",
        "23",
        "31",
        "32",
        "33",
        "34",
        "35",
        "36",
        "37",
        "41",
        "42",
        "43",
        "44",
        "45",
        "46",
        "50",
        "51",
        "52",
        "53",
        "54",
        "61",
        "62",
        "63",
        "64",
        "65",
        "71",
        "81",
        "82",
        "83",
    ),
)
_ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_IBAN_COUNTRIES = {
    15: ("NO",),
    16: ("BE",),
    18: ("DK", "FI", "FK", "FO", "GL", "NL", "SD"),
    19: ("MK", "SI"),
    20: ("AT", "BA", "EE", "KZ", "LT", "LU", "MN", "XK"),
    21: ("CH", "HR", "LI", "LV"),
    22: ("BG", "BH", "CR", "DE", "GB", "GE", "IE", "ME", "RS", "VA"),
    23: ("AE", "GI", "IL", "IQ", "OM", "SO", "TL"),
    24: ("AD", "CZ", "ES", "MD", "PK", "RO", "SA", "SE", "SK", "TN", "VG"),
    25: ("LY", "PT", "ST"),
    26: ("IS", "TR"),
    27: ("BI", "DJ", "FR", "GR", "IT", "MC", "MR", "SM"),
    28: ("AL", "AZ", "BY", "CY", "DO", "GT", "HU", "LB", "NI", "PL", "SV"),
    29: ("BR", "EG", "PS", "QA", "UA"),
    30: ("JO", "KW", "MU"),
    31: ("MT", "SC"),
    32: ("LC",),
    33: ("RU",),
}
_IBAN_LENGTHS = {country: length for length, countries in _IBAN_COUNTRIES.items() for country in countries}
_TWO_DIGIT_COUNTRIES = frozenset(
    (
        "20",
        "27",
        "30",
        "31",
        "32",
        "33",
        "34",
        "36",
        "39",
        "40",
        "41",
        "43",
        "44",
        "45",
        "46",
        "47",
        "48",
        "49",
        "51",
        "52",
        "53",
        "54",
        "55",
        "56",
        "57",
        "58",
        "60",
        "61",
        "62",
        "63",
        "64",
        "65",
        "66",
        "81",
        "82",
        "84",
        "86",
        "90",
        "91",
        "92",
        "93",
        "94",
        "95",
        "98",
    ),
)
_CARD_NETWORKS = (
    *(("credit_card", (4,), (16, 19)), ("credit_card", (34, 37), (15,)), ("credit_card", tuple(range(51, 56)), (16,))),
    *(("credit_card", tuple(range(2221, 2721)), (16,)), ("credit_card", tuple(range(2200, 2205)), (16,))),
    *(("credit_card", (6011, 65, *range(644, 650)), (16, 19)), ("credit_card", tuple(range(3528, 3590)), (16,))),
    *(("credit_card", (*range(300, 306), 36, 38, 39), (14,)), ("bank_card", (62, 81), (16, 17, 18, 19)), ("bank_card", (9558, 4367), (19,))),
)


def plain(text: bytes) -> str:
    """The match with its full-width forms as ASCII."""
    return text.decode().translate(FULL_WIDTH)


def digits_of(text: bytes) -> str:
    """The digits of a match, full-width ones as ASCII."""
    return "".join(char for char in plain(text) if char in "0123456789")


def luhn(digits: str) -> bool:
    """Whether the Luhn checksum holds."""
    doubled = [sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2]]
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


def card_type(digits: str) -> str | None:
    """``credit_card`` or ``bank_card`` by network, length and Luhn; None if it is neither. The later network wins: 4367 is no Visa."""
    if len(set(digits)) < 2 or not luhn(digits):
        return None
    found = [name for name, prefixes, lengths in _CARD_NETWORKS if len(digits) in lengths and digits.startswith(tuple(map(str, prefixes)))]
    return found[-1] if found else None


def is_resident_id(text: str) -> bool:
    """18 characters: region, date of birth from 1900 on that exists, sequence number, check character."""
    if text[:2] not in _REGIONS or not "1900" <= text[6:10] <= "2035":
        return False
    try:
        datetime.date(int(text[6:10]), int(text[10:12]), int(text[12:14]))
    except ValueError:
        return False
    total = sum(weight * int(digit) for weight, digit in zip(_ID_WEIGHTS, text, strict=False))
    return "10X98765432"[total % 11] == text[17].upper()


def iban_length(text: str) -> int | None:
    """How many characters at the start of ``text`` (spaces in groups of four allowed) are a valid IBAN; None if there is none."""
    wanted = _IBAN_LENGTHS.get(text[:2])
    end = 0
    account = ""
    while wanted and len(account) < wanted and end < len(text):
        if text[end] != " ":
            account += text[end]
        elif len(account) % 4 or text[end - 1] == " ":
            return None
        end += 1
    if not wanted or len(account) < wanted or not (account.isalnum() and account.isascii() and account.isupper()):
        return None
    number = "".join(str(int(char, 36)) for char in account[4:] + account[:4])
    return end if account[2:4] not in ("00", "01", "99") and int(number) % 97 == 1 else None


def is_international_phone(digits: str) -> bool:
    """Digits behind ``+``: an assigned country code, and a number of a possible length behind it (E.164: 15 digits at most)."""
    if digits[0] in "17":
        return len(digits) == 11
    if digits[:2] == "86":
        return len(digits) == 13 if digits[2:3] == "1" and digits[2:4] != "10" else 11 <= len(digits) <= 14
    size = 2 if digits[:2] in _TWO_DIGIT_COUNTRIES else 3
    return digits[0] != "0" and len(digits) - size >= 6 and 9 <= len(digits) <= 15


def is_address(text: str, *, with_private: bool) -> bool:
    """Whether this is an IP address; addresses that are not globally reachable (RFC 6890) only ``with_private``."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return with_private or (address.is_global and not address.is_multicast)
