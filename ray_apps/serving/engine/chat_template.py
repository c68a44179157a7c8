"""A model's chat template (Jinja, as Hugging Face keeps it), and how the contents of messages get into its text without becoming markers of turns.

Rule, for any template: it is rendered with a placeholder for each content, so it decides about roles and order, and never sees what a person
wrote. Where the rendering of the contents themselves shows that it trims them, they are trimmed; nothing else that a template does with contents
is followed. A marker of turns that is a special token of the tokenizer needs no more: no content can make one (``prompts``). A marker that is
plain text could be typed, so contents are searched for it:
- one that begins a line in the template (``user:``) is quoted with ``> `` where a line of a content begins with it;
- a content that holds one that stands inside of lines (``[/INST]``) is refused.

Costs two renderings per chat. Source of the environment: https://huggingface.co/docs/transformers/chat_templating_writing
"""

import json
import re
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ray_apps.serving.engine.interface import Message
from schemas.errors import ApiError

ROLES = ("system", "developer", "user", "assistant", "tool")
_SAMPLES = (
    ("system", "user", "assistant", "user"),
    ("user", "assistant", "user"),
    *(("user", role) for role in ROLES),
    *((role,) for role in ROLES),
)
"""Roles of chats in which every marker of a template shows."""
QUOTE = "> "
_LINE_BREAKS = "\\n\\r\\v\\f\\x1c-\\x1e\\x85\\u2028\\u2029"
_SHOWN_CHARS = 200
"""Of what a template says about messages that it does not take."""


class _Generation(Extension):
    """``{% generation %}`` marks what is trained on; for an answer it says nothing."""

    tags = {"generation"}  # noqa: RUF012  as jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The block's content as it is."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    return environment


class ChatTemplate:
    """Renders chats. Raises jinja2's TemplateError if the source is no template."""

    def __init__(self, source: str, named_tokens: Mapping[str, str]) -> None:
        """``named_tokens``: what the template may call ``bos_token`` and so on. Call ``guard`` before the first chat."""
        self._template = _environment().from_string(source)
        self._named_tokens = dict(named_tokens)
        self._nonce = f"content{secrets.token_hex(16)}x"
        self._line_markers: re.Pattern[str] | None = None
        self._inner_markers: tuple[str, ...] = ()
        self._probes = self._sample_pieces()
        self.wording = "\n".join([source, *(piece for pieces in self._probes for piece in pieces)])
        """What it may write of its own: its source, and the pieces of chats of all roles."""

    def guard(self, special_tokens: Collection[str]) -> None:
        """``special_tokens``: what no content can make. Pieces without one of them are markers in plain text, which contents are searched for."""
        lines, inner = set[str](), set[str]()
        for pieces in self._probes:
            for number, piece in enumerate(pieces):
                if (marker := piece.strip()) and not any(token in piece for token in special_tokens):
                    (lines if number == 0 or _begins_line(piece) else inner).add(marker)
        self._line_markers, self._inner_markers = _line_pattern(lines) if lines else None, tuple(sorted(inner))

    def render(self, messages: Sequence[Message], mark: Callable[[str], str]) -> str:
        """The text of a chat, up to where the answer begins; ``mark`` is applied to the template's own pieces.

        Raises ApiError 400 if the template refuses the messages, or a content holds a marker of turns.
        """
        contents = [message.content for message in messages]
        try:
            plain = self._rendered(messages, contents)
            pieces, order = self._pieces(messages)
        except Exception as error:  # a template is the model's own program: it may raise anything about roles and their order
            raise _refusal(f"this model's chat template refuses the messages: {str(error)[:_SHOWN_CHARS]}") from error
        placed = [self._guarded(text) for text in _as_trimmed(plain, pieces, [contents[number] for number in order])]
        return mark(pieces[0]) + "".join(text + mark(piece) for text, piece in zip(placed, pieces[1:], strict=True))

    def _rendered(self, messages: Sequence[Message], contents: Sequence[str]) -> str:
        values = [{"role": message.role, "content": content} for message, content in zip(messages, contents, strict=True)]
        return self._template.render(messages=values, tools=None, documents=None, add_generation_prompt=True, **self._named_tokens)

    def _pieces(self, messages: Sequence[Message]) -> tuple[list[str], list[int]]:
        """What the template writes around the contents, and which content stands between one piece and the next."""
        placeholders = [f"{self._nonce}{number}x" for number in range(len(messages))]
        parts = re.split(f"{self._nonce}(\\d+)x", self._rendered(messages, placeholders))
        return parts[::2], [int(number) for number in parts[1::2]]

    def _guarded(self, content: str) -> str:
        for marker in self._inner_markers:
            if marker in content:
                raise _refusal(
                    f"this model's chat template marks turns with the plain text {marker!r}, which one of the messages holds; write it otherwise"
                )
        return self._line_markers.sub(f"\\1{QUOTE}", content) if self._line_markers else content

    def _sample_pieces(self) -> list[list[str]]:
        """The pieces of chats of all roles, as far as the template takes them."""
        found = []
        for roles in _SAMPLES:
            try:
                found.append(self._pieces([Message(role, "") for role in roles])[0])
            except Exception:  # noqa: BLE001, S112  a chat that the template does not take has no markers
                continue
        return found


def _begins_line(piece: str) -> bool:
    """Whether the text of a piece stands at the beginning of a line."""
    return bool(re.match(f"[^\\S{_LINE_BREAKS}]*[{_LINE_BREAKS}]", piece))


def _line_pattern(markers: Collection[str]) -> re.Pattern[str]:
    """Finds lines that begin with a marker, in any case and behind any white space."""
    either = "|".join(re.escape(marker) for marker in sorted(markers))
    return re.compile(f"(^|[{_LINE_BREAKS}])(?=[^\\S{_LINE_BREAKS}]*(?:{either}))", re.IGNORECASE)


def _as_trimmed(plain: str, pieces: Sequence[str], contents: Sequence[str]) -> list[str]:
    """The contents, trimmed where ``plain``, the template's own text of them, has them trimmed; as they are if that text is explained by neither."""
    placed = []
    position = len(pieces[0])
    for content, piece in zip(contents, pieces[1:], strict=True):
        found = next((text for text in (content, content.strip()) if plain.startswith(text + piece, position)), None)
        if found is None:
            return list(contents)
        placed.append(found)
        position += len(found) + len(piece)
    return placed


def _refusal(message: str) -> ApiError:
    return ApiError(400, message, type="invalid_request_error", code="invalid_value", param="messages")
