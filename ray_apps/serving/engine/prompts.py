"""Prompts and chats as token ids.

Invariant: no text that a person sends makes a special token, nor another added token that the chat template uses as a marker. Such ids come
from token ids in a request, from the template's own text, and from what the tokenizer puts before every text (its post-processor). A document
that is ingested is encoded by the same rule, so a text has the same ids in a prompt as in training.

How: text is encoded by a copy of the tokenizer that takes special tokens for plain text. For the template's markers this copy has aliases that
nobody can guess; one call encodes a whole chat, and the ids of aliases are replaced by those of the markers. So a chat whose contents hold no
marker has the ids that transformers gives it.

Cost: 3 MB/s on one core. A text that must be longer than the context is refused before it is encoded, which bounds the memory that takes (up
to 200 times the text).
"""

import json
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from tokenizers import AddedToken, Tokenizer

from ray_apps.serving.engine.chat_template import ChatTemplate
from ray_apps.serving.engine.interface import Message
from ray_apps.serving.engine.text import token_bytes
from schemas.errors import ApiError, RegistryError

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
_NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")
_SLACK = 8
"""How much longer a text may be where the tokenizer could shorten it: a normalizer, or one id for a run of what it does not know."""


class PromptEncoder:
    """Encodes for one model folder. Not to be shared by threads. Raises RegistryError if the folder's tokenizer cannot be used."""

    def __init__(self, folder: Path, max_length: int) -> None:
        """``max_length``: tokens that a prompt must stay below."""
        values = _read(folder / TOKENIZER_FILE)
        config = _read(folder / CONFIG_FILE) if (folder / CONFIG_FILE).is_file() else {}
        self._max_length = max_length
        self.named_tokens = {name: text for name in _NAMED if (text := _token_text(config.get(name)))}
        self.table = token_bytes(_tokenizer(values))
        self._template = _template(folder, config, self.named_tokens)
        self._tokenizer, markers = _guarded_tokenizer(values, self._template.wording if self._template else "")
        self._protected = frozenset(_id_of(self._tokenizer, text) for text in markers)
        self._mark, self._alias_ids = _aliases(self._tokenizer, markers)
        self._max_bytes = _max_bytes(values, max(map(len, self.table)), max_length)
        if self._template:
            self._template.guard(markers)

    def token_id(self, name: str) -> int | None:
        """Id of ``eos_token`` or another named token, if there is one."""
        text = self.named_tokens.get(name)
        return None if text is None else self._tokenizer.token_to_id(text)

    def prompt(self, text: str) -> list[int]:
        """Ids of a text, as a document begins. Raises ApiError 400."""
        self._check_size(len(text.encode("utf-8", "surrogatepass")), "prompt")
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        self._check_plain(encoding.ids, "prompt")
        return list(self._tokenizer.post_process(encoding).ids)

    def chat(self, messages: tuple[Message, ...]) -> list[int]:
        """Ids of a chat up to where the answer begins. Raises ApiError 400."""
        if self._template is None:
            raise _refusal("this model has no chat template; use /v1/completions", "messages", "no_chat_template")
        for message in messages:
            if not message.role.isidentifier():
                raise _refusal(f"{message.role[:40]!r} is not a role", "messages")
        self._check_size(sum(len(message.content.encode("utf-8", "surrogatepass")) for message in messages), "messages")
        text = self._template.render(messages, self._mark)
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        self._check_plain(ids, "messages")
        return [self._alias_ids.get(token_id, token_id) for token_id in ids]

    def _check_size(self, size_bytes: int, param: str) -> None:
        if size_bytes >= self._max_bytes:
            least = size_bytes * self._max_length // self._max_bytes
            raise too_long(self._max_length, f"at least {least}", param)

    def _check_plain(self, ids: list[int], param: str) -> None:
        """The last line of defence, for tokenizers whose model itself makes a marker of plain text."""
        forged = self._protected.intersection(ids)
        if forged:
            raise _refusal(f"the text would become the control token {self._tokenizer.id_to_token(min(forged))!r}; write it otherwise", param)


def too_long(max_length: int, length: int | str, param: str) -> ApiError:
    """The refusal of a prompt that leaves no room for an answer."""
    message = f"This model's maximum context length is {max_length} tokens, but the prompt has {length}; shorten it."
    return _refusal(message, param, "context_length_exceeded")


def _refusal(message: str, param: str, code: str = "invalid_value") -> ApiError:
    return ApiError(400, message, type="invalid_request_error", code=code, param=param)


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RegistryError(f"{path} cannot be read: {error}; restore it from a copy of the model") from error
    return value if isinstance(value, dict) else {}


def _template(folder: Path, config: Mapping[str, Any], named_tokens: Mapping[str, str]) -> ChatTemplate | None:
    source = _template_source(folder, config)
    try:
        return ChatTemplate(source, named_tokens) if source else None
    except TemplateError as error:
        raise RegistryError(f"the chat template in {folder} cannot be used: {error}; restore it from a copy of the model") from error


def _template_source(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The file of its own wins, as in transformers; of several templates the one called default."""
    path = folder / TEMPLATE_FILE
    if path.is_file():
        return path.read_text("utf-8")
    found = config.get("chat_template")
    if isinstance(found, list):
        found = next((entry.get("template") for entry in found if entry.get("name") == "default"), None)
    return found if isinstance(found, str) and found else None


def _token_text(token: Any) -> str | None:
    """Hugging Face writes a token as a string, or as an object with its ``content``."""
    found = token.get("content") if isinstance(token, Mapping) else token
    return found if isinstance(found, str) else None


def _tokenizer(values: dict[str, Any]) -> Tokenizer:
    try:
        return Tokenizer.from_str(json.dumps(values))
    except Exception as error:  # the tokenizers package raises bare Exception for a file that it cannot parse
        raise RegistryError(f"the model's {TOKENIZER_FILE} cannot be used: {error}") from error


def _guarded_tokenizer(values: dict[str, Any], wording: str) -> tuple[Tokenizer, dict[str, AddedToken]]:
    """A tokenizer that takes markers for plain text, and the markers: special tokens, and other added tokens that the template writes."""
    markers = {}
    for token in values.get("added_tokens") or ():
        content = token["content"]
        if token["special"] or (content.strip() and content in wording):
            token["special"] = True
            markers[content] = AddedToken(content, lstrip=token["lstrip"], rstrip=token["rstrip"])
    tokenizer = _tokenizer(values)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True  # as plain text, that is
    return tokenizer, markers


def _aliases(tokenizer: Tokenizer, markers: Mapping[str, AddedToken]) -> tuple[Callable[[str], str], dict[int, int]]:
    """A function that replaces the markers of a template's text by their aliases, and the marker's id by the alias's."""
    if not markers:
        return str, {}
    nonce = secrets.token_hex(16)
    alias_of = {content: f"marker{nonce}x{number}x" for number, content in enumerate(markers)}
    tokenizer.add_tokens([_alias(alias_of[content], token) for content, token in markers.items()])
    either = re.compile("|".join(re.escape(content) for content in sorted(markers, key=len, reverse=True)))
    ids = {_id_of(tokenizer, alias): _id_of(tokenizer, content) for content, alias in alias_of.items()}
    return (lambda text: either.sub(lambda match: alias_of[match[0]], text)), ids


def _alias(text: str, marker: AddedToken) -> AddedToken:
    """Not special, so it is always looked for."""
    return AddedToken(text, lstrip=marker.lstrip, rstrip=marker.rstrip, normalized=False, special=False)


def _id_of(tokenizer: Tokenizer, text: str) -> int:
    token_id = tokenizer.token_to_id(text)
    assert token_id is not None
    return token_id


def _max_bytes(values: Mapping[str, Any], longest_token_bytes: int, max_length: int) -> int:
    """A text of as many bytes has ``max_length`` tokens or more."""
    may_shrink = values.get("normalizer") is not None or (values.get("model") or {}).get("unk_token") is not None
    return max(longest_token_bytes, 1) * max_length * (_SLACK if may_shrink else 1)
