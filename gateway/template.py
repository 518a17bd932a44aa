"""The checkpoint's own chat template: found, compiled once in a sandbox, tried, and rendered.

The environment is transformers' (`utils/chat_template_utils.py`): trimmed blocks, loop controls, `tojson` without HTML
escapes, `raise_exception`, `{% generation %}` blocks that stand for themselves.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MediaKind = Literal["image", "video"]


@dataclass(frozen=True, slots=True)
class MediaSlot:
    """A media item's place in a turn, and the tokens it takes there."""

    kind: MediaKind
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn: `role` as the template spells it, text and media in the order the model reads them."""

    role: str
    parts: tuple[str | MediaSlot, ...]


class TemplateRefusalError(Exception):
    """The template does not take this conversation; the message is the template's own."""


class TemplateUnusableError(Exception):
    """The checkpoint has no template, or one that cannot show a picture; the message says which."""


@dataclass(frozen=True, slots=True)
class Spelling:
    """How this checkpoint writes a picture and a video: what the template puts in their place."""

    image: str = "<|vision_start|><|image_pad|><|vision_end|>"
    video: str = "<|vision_start|><|video_pad|><|vision_end|>"


class ChatTemplate:
    """A compiled template and the form of content that it understands."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], spelling: Spelling) -> None:
        self.source = source
        self.digest = "sha256:" + hashlib.sha256(source.encode()).hexdigest()
        self._special_tokens = dict(special_tokens)
        self._spelling = spelling
        self._compiled = _environment().from_string(source)
        self._form = self._find_form()
        self.numbers_media = self._renders_numbers()

    @classmethod
    def open(cls, path: Path, spelling: Spelling | None = None) -> "ChatTemplate":
        """Find the template in the folder `path`, in the order a processor does. Raises TemplateUnusableError."""
        config = _read_json(path / "tokenizer_config.json")
        source = _find_source(path, config)
        if source is None:
            raise TemplateUnusableError(f"{path} has no chat template")
        return cls(source, _special_tokens(config), spelling or Spelling())

    def render(self, turns: Sequence[Turn], *, add_vision_id: bool = False) -> str:
        """The prompt up to the assistant's turn, one placeholder a media item. Raises TemplateRefusalError."""
        return self._render(self._form, turns, add_vision_id)

    def _render(self, form: "Form", turns: Sequence[Turn], add_vision_id: bool) -> str:
        messages = form(turns, self._spelling, add_vision_id)
        try:
            return self._compiled.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=True,
                add_vision_id=add_vision_id,
                **self._special_tokens,
            )
        except jinja2.TemplateError as error:
            raise TemplateRefusalError(error.message or "the template failed") from error

    def _find_form(self) -> "Form":
        """The first form of content that the template renders whole: each text once, each media item once."""
        return next(
            (form for form in (as_parts, as_parts_beside_strings, as_strings) if self._understands(form)), None
        ) or _unusable("the chat template cannot render a conversation with a picture and a video")

    def _understands(self, form: "Form") -> bool:
        try:
            rendered = self._render(form, _PROBE, add_vision_id=False)
        except (TemplateRefusalError, TypeError):
            return False
        texts = [part for turn in _PROBE for part in turn.parts if isinstance(part, str)]
        wanted = [*texts, self._spelling.image, self._spelling.video]
        return all(rendered.count(text) == 1 for text in wanted) and "{'type'" not in rendered

    def _renders_numbers(self) -> bool:
        rendered = self.render(_PROBE, add_vision_id=True)
        return "Picture 1: " in rendered and "Video 1: " in rendered


Form = Callable[[Sequence[Turn], Spelling, bool], list[dict[str, Any]]]

_PROBE = (
    Turn("system", ("probe-alpha",)),
    Turn("user", ("probe-beta", MediaSlot("image", 1), MediaSlot("video", 1))),
    Turn("assistant", ("probe-gamma",)),
    Turn("user", ("probe-delta",)),
)


def as_parts(turns: Sequence[Turn], _spelling: Spelling, _add_vision_id: bool) -> list[dict[str, Any]]:
    """Every turn's content as a list of parts: what Qwen2-VL's own template takes."""
    return [{"role": turn.role, "content": _parts(turn)} for turn in turns]


def as_parts_beside_strings(turns: Sequence[Turn], _spelling: Spelling, _add_vision_id: bool) -> list[dict[str, Any]]:
    """Lists for turns with media, plain strings for turns of text alone."""
    return [{"role": turn.role, "content": _parts(turn) if _has_media(turn) else _joined(turn)} for turn in turns]


def as_strings(turns: Sequence[Turn], spelling: Spelling, add_vision_id: bool) -> list[dict[str, Any]]:
    """Strings everywhere, the placeholders written here: for templates that know nothing of media."""
    counts = {"image": 0, "video": 0}
    messages = []
    for turn in turns:
        pieces = [
            part if isinstance(part, str) else _placeholder(part, spelling, counts, add_vision_id)
            for part in turn.parts
        ]
        messages.append({"role": turn.role, "content": "".join(pieces)})
    return messages


def _parts(turn: Turn) -> list[dict[str, str]]:
    return [{"type": "text", "text": part} if isinstance(part, str) else {"type": part.kind} for part in turn.parts]


def _has_media(turn: Turn) -> bool:
    return any(isinstance(part, MediaSlot) for part in turn.parts)


def _joined(turn: Turn) -> str:
    return "".join(part for part in turn.parts if isinstance(part, str))


def _placeholder(slot: MediaSlot, spelling: Spelling, counts: dict[str, int], add_vision_id: bool) -> str:
    counts[slot.kind] += 1
    name = "Picture" if slot.kind == "image" else "Video"
    prefix = f"{name} {counts[slot.kind]}: " if add_vision_id else ""
    return prefix + (spelling.image if slot.kind == "image" else spelling.video)


def _find_source(path: Path, config: Mapping[str, Any]) -> str | None:
    if (file := path / "chat_template.jinja").is_file():
        return file.read_text(encoding="utf-8")
    template = _read_json(path / "chat_template.json").get("chat_template") or config.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else None


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """`eos_token` and its like, which transformers hands to the template."""
    tokens = {}
    for name, value in config.items():
        spelled = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(spelled, str):
            tokens[name] = spelled
    return tokens


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    content = json.loads(file.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}`: marks for training; here the body alone counts."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own protocol

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)  # the template's local time
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _unusable(message: str) -> NoReturn:
    raise TemplateUnusableError(message)
