"""generation_config.json: how a request that names no options is generated, and where an answer ends."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.common.checkpoint.config import text_section
from services.common.checkpoint.files import Section, read_json_if_present


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """The checkpoint's own options. Absent ones are neutral: temperature 1, top_p 1, top_k 0 (all), penalty 1."""

    do_sample: bool
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    eos_token_ids: tuple[int, ...]


def read_generation(folder: Path, config: Section) -> GenerationDefaults:
    """From generation_config.json, which may be absent; end ids then come from config.json, else the tokenizer."""
    generation = read_json_if_present(folder / "generation_config.json")
    return GenerationDefaults(
        do_sample=generation.flag("do_sample", False),
        temperature=generation.number("temperature", 1.0),
        top_p=generation.number("top_p", 1.0),
        top_k=generation.integer("top_k", 0),
        repetition_penalty=generation.number("repetition_penalty", 1.0),
        eos_token_ids=_eos(generation) or _eos(text_section(config)) or _eos(config) or _tokenizer_eos(folder),
    )


def _eos(section: Section) -> tuple[int, ...]:
    value = section.raw("eos_token_id")
    ids = value if isinstance(value, list) else [value]
    if value is None:
        return ()
    if not all(isinstance(number, int) for number in ids):
        raise section.error("eos_token_id", "must be an id or a list of ids")
    return tuple(ids)


def _tokenizer_eos(folder: Path) -> tuple[int, ...]:
    """The id of the tokenizer's own end token; empty when it names none."""
    tokenizer = read_json_if_present(folder / "tokenizer_config.json")
    token = _content(tokenizer.raw("eos_token"))
    added = tokenizer.raw("added_tokens_decoder") or {}
    ids = [int(number) for number, entry in added.items() if token is not None and _content(entry) == token]
    listed = read_json_if_present(folder / "tokenizer.json").raw("added_tokens") or []
    return tuple(ids or [entry["id"] for entry in listed if token is not None and entry["content"] == token])


def _content(token: Any) -> str | None:
    """A token as tokenizer files write it: its text, or an object that holds it."""
    return token.get("content") if isinstance(token, dict) else token
