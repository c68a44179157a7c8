"""Settings of personal data and secrets in documents."""

from typing import Literal

from pydantic import Field

from schemas.section import Section

PiiAction = Literal["redact", "drop", "count", "off"]
"""``redact``: a typed placeholder such as ``<EMAIL>`` takes its place; ``drop``: the document is rejected as ``pii/<type>``;
``count``: counted only; ``off``: not looked for."""


class PiiSettings(Section):
    """What happens to each type of personal data and secret: "redact" (``<EMAIL>`` takes its place), "drop" (the document), "count" or "off"."""

    email: PiiAction = "redact"
    """E-mail addresses."""
    phone: PiiAction = "redact"
    """Telephone numbers: international (``+…``), Chinese mobile and fixed lines, North American ones with separators, and Japanese, Korean and
    Taiwanese ones as they are written at home."""
    resident_id: PiiAction = "redact"
    """Chinese resident identity numbers: 18 characters with a possible region, date of birth and check character."""
    credit_card: PiiAction = "redact"
    """Cards of the international networks (Visa, Mastercard, American Express, Discover, JCB, Diners, Mir), checked by Luhn."""
    bank_card: PiiAction = "redact"
    """UnionPay and other Chinese bank cards, checked by Luhn."""
    iban: PiiAction = "redact"
    """International bank account numbers, checked by country, length and modulo 97."""
    ip: PiiAction = "count"
    """IP addresses, versions 4 and 6. Only counted by default: most name machines, and documentation is full of them."""
    ip_private: bool = False
    """Whether private, loopback, link-local and documentation addresses count as IP addresses too."""
    api_key: PiiAction = "redact"
    """Keys and tokens with a known form: AWS, GitHub, GitLab, Slack, Google, OpenAI-like ``sk-``, Stripe, Hugging Face, npm, PyPI, Alibaba …"""
    jwt: PiiAction = "redact"
    """JSON Web Tokens."""
    private_key: PiiAction = "redact"
    """PEM and PGP private key blocks."""
    password: PiiAction = "redact"  # noqa: S105
    """Values behind ``password=``, ``api_key:``, ``密码：`` and the like, and the password in a URL (``https://user:password@host/``)."""
    ner: str = Field("", pattern=r"^([A-Za-z_][\w.]*:[A-Za-z_]\w*)?$")
    """``module:function`` of your own model: takes a list of texts, returns for each a list of (start, end, type) in characters.
    Empty: none. The workers import this module: it is your code and runs with their rights."""
    ner_action: PiiAction = "redact"
    """What happens to what your model finds."""
