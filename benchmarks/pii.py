"""Personal data and secrets: precision and recall by type on generated texts, beside datatrove's formatter in one run, and speed.

    python -m benchmarks.pii [--cases 4000] [--seed 1] [--megabytes 20]

Every case is a sentence (English or Chinese) with one value: of a type, or one that only looks like it: wrong checksums, order numbers, dates,
versions, hashes, prices, ISBNs, keycap emoji. A value is found if the placeholder of its type is there and the value is not.
The values are built at run time; none of them is anybody's.
"""

import argparse
import importlib
import random
import string
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import pyarrow as pa
from stdnum.luhn import is_valid as luhn

from pipelines.steps.pii import redact
from schemas.settings_pii import PiiSettings

ALL = PiiSettings(ip="redact")
LETTERS, DIGITS, ALNUM = string.ascii_lowercase, string.digits, string.ascii_letters + string.digits
TEMPLATES = (
    "You can reach us at {} during office hours.",
    "Please note {}, as agreed last week.",
    "The value was {}; nothing else was written down.",
    "Details ({}) follow in a second message.",
    "请记下{}，谢谢。",
    "他留下的是：{}。",
    "资料如下（{}），请核对",
    "客户说{}是对的，我们已经登记。",
)


class Case(NamedTuple):
    """One text and what is in it."""

    text: str
    type: str
    """The type that is in it; empty: none."""
    looks_like: str
    """The type that it is meant to be mistaken for (or is)."""
    value: str


def pick(rng: random.Random, alphabet: str, size: int) -> str:
    return "".join(rng.choice(alphabet) for _ in range(size))


def with_luhn(digits: str) -> str:
    return next(digits + last for last in DIGITS if luhn(digits + last))


def without_luhn(digits: str) -> str:
    return next(digits + last for last in DIGITS if not luhn(digits + last))


def grouped(digits: str, separator: str) -> str:
    return separator.join(digits[at : at + 4] for at in range(0, len(digits), 4))


def full_width(text: str) -> str:
    return "".join(chr(ord(char) + 0xFEE0) if char in DIGITS else char for char in text)


def email(rng: random.Random) -> str:
    local = pick(rng, LETTERS, rng.randint(2, 9)) + rng.choice(["", ".", "_", "+", "-"]) + pick(rng, LETTERS + DIGITS, rng.randint(1, 6))
    domain = rng.choice(["example.com", "mail.example.co.uk", "qq.com", "163.com", "sub.domain.example.org", "uni-bonn.de", "x.io"])
    return f"{local}{rng.choice(['@', '@', '@', '＠'])}{domain}"


def mobile(rng: random.Random) -> str:
    digits = rng.choice(["13", "15", "17", "18", "19"]) + pick(rng, DIGITS, 9)
    forms = [
        digits,
        f"{digits[:3]}-{digits[3:7]}-{digits[7:]}",
        f"{digits[:3]} {digits[3:7]} {digits[7:]}",
        f"+86 {digits}",
        f"+86{digits}",
        full_width(digits),
    ]
    return rng.choice(forms)


def phone(rng: random.Random) -> str:
    local = rng.choice("2345678") + pick(rng, DIGITS, 7)
    exchange = rng.choice("23456789") + pick(rng, DIGITS, 2)
    area = rng.choice(["212", "305", "415", "617", "702"])  # that are given out
    trunk = f"{rng.choice(['090', '080', '070'])}-{rng.randint(1000, 9999)}-{local[:4]}"
    others = [
        *(f"0{rng.choice(['10', '21', '755', '571'])}-{local}", f"(0{rng.choice(['10', '20'])}) {local}", f"（010）{local}"),
        *(
            f"+1 ({area}) {exchange}-{local[:4]}",
            f"({area}) {exchange}-{local[:4]}",
            f"{area}-{exchange}-{local[:4]}",
            f"+1-{area}-{exchange}-{local[:4]}",
        ),
        *(
            f"+44 20 7{local[1:4]} {local[4:]}",
            f"+49 30 {local}",
            f"+33 6 {local[:2]} {local[2:4]} {local[4:6]} {local[6:]}",
            f"+852 2{local[1:4]} {local[4:]}",
        ),
        *(trunk, full_width(trunk).replace("-", "ー"), trunk.replace("-", ""), f"03-3{local[1:4]}-{local[4:]}", f"(06) 62{local[2:4]}-{local[4:]}"),
    ]
    return rng.choice([mobile(rng), mobile(rng), rng.choice(others)])


def resident_id(rng: random.Random, *, valid: bool = True) -> str:
    body = rng.choice(["110105", "310101", "440305", "510104", "650102"]) + f"{rng.randint(1940, 2015)}{rng.randint(1, 12):02}{rng.randint(1, 28):02}"
    body += pick(rng, DIGITS, 3)
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    right = "10X98765432"[sum(weight * int(digit) for weight, digit in zip(weights, body, strict=True)) % 11]
    number = body + (right if valid else rng.choice([digit for digit in DIGITS if digit != right]))
    return full_width(number) if valid and rng.random() < 0.1 else number


def credit_card(rng: random.Random) -> str:
    prefix, size = rng.choice([("4", 16), ("4", 16), ("52", 16), ("2345", 16), ("37", 15), ("6011", 16), ("3530", 16)])
    digits = with_luhn(prefix + pick(rng, DIGITS, size - 1 - len(prefix)))
    return digits if size == 15 else rng.choice([digits, grouped(digits, " "), grouped(digits, "-")])


def bank_card(rng: random.Random) -> str:
    digits = with_luhn("62" + pick(rng, DIGITS, rng.choice([13, 16])))
    return rng.choice([digits, grouped(digits, " ")])


def iban(rng: random.Random, *, valid: bool = True) -> str:
    country, bank = rng.choice(
        [("DE", pick(rng, DIGITS, 18)), ("FR", pick(rng, DIGITS, 23)), ("GB", "NWBK" + pick(rng, DIGITS, 14)), ("ES", pick(rng, DIGITS, 20))]
    )
    remainder = int("".join(str(int(char, 36)) for char in bank + country + "00")) % 97
    right = 98 - remainder
    account = f"{country}{right if valid else rng.choice([number for number in range(2, 99) if number != right]):02}{bank}"
    return rng.choice([account, grouped(account, " ")])


def ip(rng: random.Random) -> str:
    if rng.random() < 0.25:
        return f"2a0{rng.randint(1, 9)}:{rng.randint(1, 65535):x}:{rng.randint(1, 65535):x}::{rng.randint(1, 65535):x}"
    return f"{rng.choice([34, 52, 81, 114, 139, 183, 203])}.{rng.randint(120, 255)}.{rng.randint(1, 255)}.{rng.randint(1, 254)}"


def api_key(rng: random.Random) -> str:
    upper = string.ascii_uppercase + DIGITS
    return rng.choice(
        [
            *("AKI" + "A" + pick(rng, upper, 16), "gh" + "p_" + pick(rng, ALNUM, 36), "github" + "_pat_" + pick(rng, ALNUM, 40)),
            *(
                "xox" + f"b-{pick(rng, DIGITS, 12)}-{pick(rng, ALNUM, 24)}",
                "AI" + "za" + pick(rng, ALNUM + "_-", 34) + "x",
                "s" + "k-" + pick(rng, ALNUM, 48),
            ),
            *(
                "sk" + "_live_" + pick(rng, ALNUM, 24),
                "h" + "f_" + pick(rng, ALNUM, 34),
                "LT" + "AI" + pick(rng, ALNUM, 20),
                "gl" + "pat-" + pick(rng, ALNUM, 20),
            ),
        ]
    )


def jwt(rng: random.Random) -> str:
    return f"ey{'J'}hbGciOiJIUzI1NiJ9.ey{'J'}{pick(rng, ALNUM, 40)}.{pick(rng, ALNUM + '_-', 43)}"


def private_key(rng: random.Random) -> str:
    kind = rng.choice(["RSA ", "EC ", "OPENSSH ", ""])
    body = "\n".join(pick(rng, ALNUM + "+/", 64) for _ in range(rng.randint(3, 20)))
    return f"-----BEGIN {kind}PRIVATE KEY-----\n{body}\n-----END {kind}PRIVATE KEY-----"


def password(rng: random.Random) -> str:
    value = pick(rng, ALNUM, rng.randint(5, 14)) + rng.choice(DIGITS) + rng.choice(["!", "#", "a", "Z"])
    return rng.choice(
        [
            *(f"password={value}", f"PASSWORD: {value}", f'"api_key": "{value}"', f"密码：{value}", f"secret_key = '{value}'", f"pwd:{value}"),
            *(f"https://user:{value}@example.com/", f"AWS_SECRET_ACCESS_KEY=wJ7{pick(rng, ALNUM + '/+', 30)}EXAMPLE"),
        ]
    )


POSITIVE: dict[str, Callable[[random.Random], str]] = {
    "email": email,
    "phone": phone,
    "resident_id": resident_id,
    "credit_card": credit_card,
    "bank_card": bank_card,
    "iban": iban,
    "ip": ip,
    "api_key": api_key,
    "jwt": jwt,
    "private_key": private_key,
    "password": password,
}
NEGATIVE: dict[str, tuple[Callable[[random.Random], str], ...]] = {
    "email": (
        lambda rng: f"icon@{rng.randint(2, 3)}x.png",
        lambda rng: f"@{pick(rng, LETTERS, 8)}",
        lambda rng: f"lodash@{rng.randint(1, 9)}.{rng.randint(0, 30)}.{rng.randint(0, 30)}",
        lambda rng: f"3 apples @ $2.{rng.randint(10, 99)}",
        lambda rng: f"git@github.com:{pick(rng, LETTERS, 6)}/{pick(rng, LETTERS, 6)}.git",
    ),
    "phone": (
        lambda rng: f"20{rng.randint(10, 29)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02} {rng.randint(10, 23)}:{rng.randint(10, 59)}:30",
        lambda rng: f"20{rng.randint(10, 29)}{rng.randint(1, 12):02}{rng.randint(1, 28):02}{pick(rng, DIGITS, 6)}",
        lambda rng: f"¥{rng.randint(1, 999)},{pick(rng, DIGITS, 3)},{pick(rng, DIGITS, 3)}.00",
        lambda rng: f"978-7-{pick(rng, DIGITS, 3)}-{pick(rng, DIGITS, 5)}-{rng.choice(DIGITS)}",
        lambda rng: f"17{pick(rng, DIGITS, 8)}",
        lambda rng: f"17{pick(rng, DIGITS, 11)}",
        lambda rng: "".join(f"{digit}\ufe0f\u20e3" for digit in "13" + pick(rng, DIGITS, 9)),
        lambda rng: f"一三八{pick(rng, '零一二三四五六七八九', 8)}",
        lambda rng: f"DD-{pick(rng, DIGITS, 11)}",
        lambda rng: f"0.13{pick(rng, DIGITS, 9)}",
        lambda rng: f"#13{pick(rng, DIGITS, 9)}",
        lambda rng: f"+{rng.choice('2345689')}.{pick(rng, DIGITS, 10)}",
        lambda _: "+2147483647",
        lambda rng: f"01-{rng.randint(10, 28)}-2{pick(rng, DIGITS, 3)}",
    ),
    "resident_id": (
        lambda rng: resident_id(rng, valid=False),
        lambda rng: f"20{pick(rng, DIGITS, 16)}",
        lambda rng: f"9{pick(rng, DIGITS, 17)}",
    ),
    "credit_card": (
        lambda rng: without_luhn("4" + pick(rng, DIGITS, 14)),
        lambda rng: grouped(without_luhn("5" + rng.choice("12345") + pick(rng, DIGITS, 13)), " "),
        lambda rng: f"1{pick(rng, DIGITS, 15)}",
        lambda rng: str(uuid.UUID(int=rng.getrandbits(128))),
    ),
    "bank_card": (lambda rng: without_luhn("62" + pick(rng, DIGITS, 16)), lambda rng: f"0{pick(rng, DIGITS, 18)}"),
    "iban": (lambda rng: iban(rng, valid=False), lambda rng: f"AB12{pick(rng, string.ascii_uppercase + DIGITS, 18)}"),
    "ip": (
        lambda rng: f"version {rng.randint(1, 20)}.{rng.randint(100, 200)}.{rng.randint(0, 20)}.{rng.randint(0, 200)}",
        lambda rng: f"Chrome/{rng.randint(90, 120)}.0.{rng.randint(4000, 6000)}.{rng.randint(10, 200)}",
        lambda rng: f"{rng.randint(1, 12)}.{rng.randint(1, 20)}.{rng.randint(1, 20)}.{rng.randint(1, 9)}",
        lambda rng: f"{rng.randint(300, 999)}.{rng.randint(300, 999)}.1.1",
        lambda rng: f"192.168.{rng.randint(0, 255)}.{rng.randint(1, 254)}",
        lambda rng: f"{rng.randint(10, 23)}:{rng.randint(10, 59)}:{rng.randint(10, 59)}",
        lambda rng: ":".join(pick(rng, "0123456789abcdef", 2) for _ in range(6)),
        lambda _: "std::vector<ab2::cd>",
    ),
    "api_key": (
        lambda rng: pick(rng, "0123456789abcdef", 40),
        lambda rng: f"sk-{pick(rng, LETTERS, 8)}-{pick(rng, LETTERS, 9)}-{pick(rng, LETTERS, 7)}",
        lambda _: "ghp_" + "x" * 36,
        lambda rng: str(uuid.UUID(int=rng.getrandbits(128))),
    ),
    "jwt": (lambda rng: f"eyJ{pick(rng, LETTERS, 20)}", lambda rng: f"eyewear.{pick(rng, LETTERS, 12)}.{pick(rng, LETTERS, 12)}"),
    "private_key": (
        lambda rng: f"-----BEGIN CERTIFICATE-----\n{pick(rng, ALNUM, 64)}\n-----END CERTIFICATE-----",
        lambda _: "-----BEGIN RSA PRIVATE KEY-----\n<your key here>\n-----END RSA PRIVATE KEY-----",
    ),
    "password": (
        lambda rng: f"password: {rng.choice(['required', 'optional', 'must be long', 'string', 'none'])}",
        lambda rng: f"token = get_token_v{rng.randint(1, 9)}()",
        lambda _: "password=${DB_PASSWORD1}",
        lambda _: "https://user:${DB_PASSWORD1}@example.com/",
        lambda rng: f"http://localhost:80{pick(rng, DIGITS, 2)}/",
        lambda rng: f"the key: {pick(rng, LETTERS, 4)}{rng.randint(100, 999)}",
        lambda _: "密码：请联系管理员",
        lambda _: "password = settings.DB_PASSWORD2",
    ),
}


def generate(num_cases: int, seed: int) -> list[Case]:
    """Cases of all types in turn: half hold a value, half only seem to."""
    rng = random.Random(seed)
    cases = []
    for number in range(num_cases):
        name = list(POSITIVE)[number // 2 % len(POSITIVE)]
        value = POSITIVE[name](rng) if number % 2 == 0 else rng.choice(NEGATIVE[name])(rng)
        cases.append(Case(rng.choice(TEMPLATES).format(value), name if number % 2 == 0 else "", name, value))
    return cases


def score(cases: list[Case], found: list[set[str]]) -> dict[str, tuple[float, float]]:
    """Precision and recall of each type. Every type found in a text that holds another one, or none, is a false one."""
    right: dict[str, int] = defaultdict(int)
    wrong: dict[str, int] = defaultdict(int)
    total: dict[str, int] = defaultdict(int)
    for case, types in zip(cases, found, strict=True):
        total[case.type] += 1
        for name in types:
            right[name] += name == case.type
            wrong[name] += name != case.type
    return {name: (right[name] / max(right[name] + wrong[name], 1), right[name] / max(total[name], 1)) for name in POSITIVE if total[name]}


def ours(cases: list[Case]) -> list[set[str]]:
    """What is found; a value that is still there, whole, has not been found."""
    result = redact(pa.array([case.text for case in cases], pa.large_string()), ALL)
    found = [{entry["type"] for entry in counts or ()} for counts in result.counts.to_pylist()]
    for case, types, text in zip(cases, found, result.texts.to_pylist(), strict=True):
        if case.value in text:
            types.discard(case.type)
    return found


def datatroves(cases: list[Case]) -> list[set[str]] | None:
    """datatrove's formatter: e-mail and IP addresses; None if it is not installed."""
    try:
        formatters = importlib.import_module("datatrove.pipeline.formatters")
    except ImportError:
        return None
    emails, ips = formatters.PIIFormatter(remove_ips=False), formatters.PIIFormatter(remove_emails=False)
    return [{name for name, formatter in (("email", emails), ("ip", ips)) if formatter.format(case.text) != case.text} for case in cases]


def best_seconds(work: Callable[[], Any], repeats: int = 3) -> float:
    """Shortest of a few runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def measure_speed(megabytes: float, seed: int) -> None:
    """Ordinary text: sentences of words, English and Chinese, and in every fifteenth kilobyte a value or something that looks like one."""
    rng = random.Random(seed)
    cases = generate(400, seed)
    words = [pick(rng, LETTERS, rng.randint(2, 9)) for _ in range(2000)]
    documents = []
    for _ in range(int(megabytes * 1e6 / 3000)):
        sentences = [" ".join(rng.choices(words, k=12)) + rng.choice([". ", "。", ", in 2019. ", "：第3章。"]) for _ in range(40)]
        if rng.random() < 0.2:
            sentences[rng.randrange(40)] += rng.choice(cases).text
        documents.append("".join(sentences))
    texts = pa.array(documents, pa.large_string())
    size = sum(len(document.encode()) for document in documents) / 1e6
    redact(texts[:200], ALL)  # compile
    print(f"\n{'headrace, one core':24}{size / best_seconds(lambda: redact(texts, ALL)):9.1f} MB/s, all types")
    few = [Case(document, "", "", "") for document in documents[: len(documents) // 10]]
    spent = best_seconds(lambda: datatroves(few))
    if datatroves([]) is not None:
        print(f"{'datatrove, one core':24}{size / 10 / spent:9.1f} MB/s, e-mail and IP")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=22_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--megabytes", type=float, default=20)
    options = parser.parse_args()
    cases = generate(options.cases, options.seed)
    mine, theirs = score(cases, ours(cases)), datatroves(cases)
    peer = score(cases, theirs) if theirs is not None else {}
    print(f"{'':14}{'headrace':>22}{'datatrove':>22}\n{'type':14}" + f"{'precision':>11}{'recall':>11}" * 2)
    for name, (precision, recall) in mine.items():
        print(
            f"{name:14}{precision:11.3f}{recall:11.3f}" + (f"{peer[name][0]:11.3f}{peer[name][1]:11.3f}" if name in ("email", "ip") and peer else "")
        )
    measure_speed(options.megabytes, options.seed)


if __name__ == "__main__":
    main()
