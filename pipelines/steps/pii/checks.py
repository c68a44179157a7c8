"""What a regular expression cannot say: checksums, dates, regions, lengths and number plans by country.

Everything here sees matches only, a few per document, so it is plain Python. ``digits`` are ASCII. ``python-stdnum`` checks Luhn and IBAN,
``phonenumbers`` the numbers of countries that patterns.py has no exact pattern of.
Cost per match, measured on one core: Luhn 17 us, IBAN 90 us, a telephone number 150 us. Resident identity numbers are checked here (37 us):
``stdnum.cn.ric`` takes 200 us and does not know a third of the counties that we tried (440305 and 510104 among them).
Sources: GB 11643-1999 (resident identity numbers), ISO/IEC 7812 (card numbers), ISO 13616 (IBAN), ITU-T E.164, RFC 6890 (special addresses).
"""

import datetime
import functools
import ipaddress
import re

import phonenumbers
from stdnum import iban, luhn, numdb

FULL_WIDTH = {0xFF01 + i: 0x21 + i for i in range(94)} | dict.fromkeys([*range(0x2010, 0x2016), 0x2212, 0x30FC], 0x2D) | {0x3000: 0x20}
"""Full-width forms as ASCII, the ideographic space as a space, dashes as hyphens; as such serve the minus sign and the kana prolongation mark too."""

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


def card_type(digits: str) -> str | None:
    """``credit_card`` or ``bank_card`` by network, length and Luhn; None if it is neither. The later network wins: 4367 is no Visa."""
    if len(set(digits)) < 2 or not luhn.is_valid(digits):
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
    """How many characters at the start of ``text`` (spaces in groups of four allowed) are a valid IBAN; None if there is none.

    The check digits of the country's own account number are not asked for: who mistypes these has still written an account number.
    """
    wanted = _iban_size(text[:2])
    end = 0
    account = ""
    while wanted and len(account) < wanted and end < len(text):
        if text[end] != " ":
            account += text[end]
        elif len(account) % 4 or text[end - 1] == " ":
            return None
        end += 1
    is_whole = wanted > 0 and len(account) == wanted and account.isupper()
    return end if is_whole and account[2:4] not in ("00", "01", "99") and iban.is_valid(account, check_country=False) else None


@functools.cache
def _iban_size(country: str) -> int:
    """Characters of an IBAN of this country; 0 for a country that has none."""
    for _, known in numdb.get("iban").info(country):
        if "bban" in known:
            return 4 + sum(map(int, re.findall(r"\d+", known["bban"])))
    return 0


def is_international_phone(text: str) -> bool:
    """``+`` and digits with what may part them: a number that the plan of its country has (E.164), and no decimal fraction.

    A fraction has a point behind its first digits and nothing else. A number may be written so too, with the point behind its country's
    code (RFC 5733): +1.4155552671.
    """
    try:
        number = phonenumbers.parse(text, None)
    except phonenumbers.NumberParseException:
        return False
    fraction = re.fullmatch(r"\+(\d+)\.\d+", text)
    return phonenumbers.is_valid_number(number) and (fraction is None or int(fraction[1]) == number.country_code)


def is_national_phone(text: str, regions: dict[str, int]) -> bool:
    """Digits with a trunk zero and what may part them: a number of one of these regions, named with their country codes.

    If the text has a space and no parenthesis, its groups must be those of the country's own format: tables hold such groups too.
    """
    digits = re.findall("[0-9]+", text)
    must_fit = " " in text and "(" not in text
    for region, country_code in regions.items():
        try:
            number = phonenumbers.parse("".join(digits), region)
        except phonenumbers.NumberParseException:
            continue
        if number.country_code == country_code and phonenumbers.is_valid_number(number) and (not must_fit or _groups(number) == digits):
            return True
    return False


def _groups(number: phonenumbers.PhoneNumber) -> list[str]:
    return re.findall("[0-9]+", phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.NATIONAL))


def is_address(text: str, *, with_private: bool) -> bool:
    """Whether this is an IP address; addresses that are not globally reachable (RFC 6890) only ``with_private``."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return with_private or (address.is_global and not address.is_multicast)
