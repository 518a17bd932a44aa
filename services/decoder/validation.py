"""Checks a prompt from another service and turns it into the engine's terms. All violations are collected."""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from diptych.v1 import content_pb2, decoder_service_pb2, generation_pb2
from numpy.typing import NDArray

from services.common.checkpoint import GenerationDefaults
from services.common.errors import InvalidRequest, PromptTooLong, VersionMismatch, Violation
from services.common.mrope import Span
from services.decoder.grammar import GrammarKind, GrammarSource, choice_source
from services.decoder.sequence import SamplingParams
from services.decoder.waiting import MAX_PRIORITY

MAX_CHOICES = 16
MAX_LOGPROBS = 20
MAX_LOGIT_BIASES = 1024
MAX_STOP_IDS = 64
MAX_GRAMMAR_BYTES = 64 << 10
MAX_KEY_BYTES = 64


@dataclass(frozen=True, slots=True)
class Rules:
    """What this decoder's prompts must agree with."""

    checkpoint_digest: str
    vocab_size: int
    image_token_id: int
    video_token_id: int
    merge_size: int
    max_context_tokens: int
    defaults: GenerationDefaults


@dataclass(frozen=True, slots=True)
class CheckedPrompt:
    """A prompt that can be served."""

    token_ids: list[int]
    spans: list[Span]
    media_keys: list[bytes]
    slice_keys: list[list[bytes]]  # of each item; none where its embeddings follow
    params: SamplingParams
    priority: int
    grammar: GrammarSource | None
    resumed: list[list[int]]


def check_prompt(prompt: decoder_service_pb2.Prompt, rules: Rules, random_seed: int) -> CheckedPrompt:
    """VersionMismatch, PromptTooLong, or InvalidRequest with every violation. `random_seed` is for who names none."""
    if prompt.checkpoint_digest and prompt.checkpoint_digest != rules.checkpoint_digest:
        raise VersionMismatch("checkpoint", prompt.checkpoint_digest, rules.checkpoint_digest)
    token_ids = np.array(prompt.token_ids, dtype=np.int64)
    problems = _Problems()
    spans = _check_media(prompt, rules, problems)
    _check_token_ids(prompt, token_ids, spans, rules, problems)
    params = _read_params(prompt.generation, len(token_ids), rules, random_seed, problems)
    priority = _Numbers(prompt.generation, problems).whole("priority", 0, 0, MAX_PRIORITY)
    grammar = _read_grammar(prompt.generation, problems)
    resumed = _read_resumed(prompt, params, rules, problems)
    problems.raise_any()
    if len(token_ids) + max(params.max_tokens, 1) > rules.max_context_tokens:
        most = rules.max_context_tokens - max(params.max_tokens, 1)
        raise PromptTooLong(len(token_ids), max(most, 0), field="prompt.token_ids")
    keys = [item.media_key for item in prompt.media]
    slice_keys = [list(item.slice_keys) for item in prompt.media]
    return CheckedPrompt(token_ids.tolist(), spans, keys, slice_keys, params, priority, grammar, resumed)


class _Problems:
    """The violations found so far."""

    def __init__(self) -> None:
        self._found: list[Violation] = []

    def add(self, field: str, description: str, reason: str = "OUT_OF_RANGE") -> None:
        self._found.append(Violation(field, description, reason))

    def unless(self, condition: bool, field: str, description: str, reason: str = "OUT_OF_RANGE") -> None:
        if not condition:
            self.add(field, description, reason)

    def raise_any(self) -> None:
        if self._found:
            raise InvalidRequest(self._found)


def _check_media(prompt: decoder_service_pb2.Prompt, rules: Rules, problems: _Problems) -> list[Span]:
    """Spans of the items whose grids make sense and lie in the prompt, in order."""
    spans = []
    for index, item in enumerate(prompt.media):
        field, grid = f"prompt.media[{index}]", item.grid
        problems.unless(
            0 < len(item.media_key) <= MAX_KEY_BYTES, f"{field}.media_key", f"must be 1 to {MAX_KEY_BYTES} bytes"
        )
        problems.unless(
            len(item.slice_keys) in {0, grid.t}, f"{field}.slice_keys", "must be one a slice, or none", "SIZE_MISMATCH"
        )
        problems.unless(item.kind in _KINDS, f"{field}.kind", "must be an image or a video", "REQUIRED")
        sides = {"t": grid.t, "h": grid.h, "w": grid.w}
        bad = [side for side, size in sides.items() if size < 1 or (side != "t" and size % rules.merge_size)]
        for side in bad:
            problems.add(
                f"{field}.grid.{side}", f"is {sides[side]}; a positive multiple of {rules.merge_size} is needed"
            )
        if item.kind == content_pb2.MEDIA_KIND_IMAGE and grid.t > 1:
            problems.add(f"{field}.grid.t", "must be 1 for an image")
        span = Span(item.offset, (grid.t, grid.h, grid.w), rules.merge_size)
        if not bad:
            fits = item.offset + span.num_tokens <= len(prompt.token_ids)
            problems.unless(fits, f"{field}.offset", f"leaves no room for {span.num_tokens} pads")
            spans += [span] if fits else []
    for before, after in pairwise(spans):
        if before.offset + before.num_tokens > after.offset:
            problems.add("prompt.media", "items overlap or are out of order", "OVERLAP")
    return spans


_KINDS = (content_pb2.MEDIA_KIND_IMAGE, content_pb2.MEDIA_KIND_VIDEO)


def _check_token_ids(
    prompt: decoder_service_pb2.Prompt,
    token_ids: NDArray[np.int64],
    spans: list[Span],
    rules: Rules,
    problems: _Problems,
) -> None:
    """Ids are in the vocabulary, and pads stand where media stand and nowhere else."""
    problems.unless(len(token_ids) > 0, "prompt.token_ids", "must not be empty", "REQUIRED")
    if len(token_ids) and int(token_ids.max()) >= rules.vocab_size:
        problems.add("prompt.token_ids", f"ids must be below {rules.vocab_size}")
    if len(spans) != len(prompt.media):
        return
    pads = (rules.image_token_id, rules.video_token_id)
    expected = np.full(len(token_ids), -1)
    for span, item in zip(spans, prompt.media, strict=True):
        expected[span.offset : span.offset + span.num_tokens] = pads[item.kind == content_pb2.MEDIA_KIND_VIDEO]
    actual = np.where(np.isin(token_ids, pads), token_ids, -1)
    wrong = np.flatnonzero(expected != actual)
    if wrong.size:
        problems.add("prompt.token_ids", f"pads and media disagree, first at index {wrong[0]}", "PAD_MISMATCH")


def _read_params(
    generation: generation_pb2.Generation, num_prompt_tokens: int, rules: Rules, random_seed: int, problems: _Problems
) -> SamplingParams:
    """Sampling options; what is unset takes the checkpoint's generation config."""
    defaults = rules.defaults
    numbers = _Numbers(generation, problems)
    room = max(rules.max_context_tokens - num_prompt_tokens, 1)
    num_choices = numbers.whole("num_choices", 1, 1, MAX_CHOICES)
    return SamplingParams(
        max_tokens=numbers.whole("max_tokens", room, 1),
        min_tokens=numbers.whole("min_tokens", 0, 0),
        temperature=numbers.real("temperature", defaults.temperature if defaults.do_sample else 0.0, 0.0, 100.0),
        top_p=numbers.real("top_p", defaults.top_p, 0.0, 1.0),
        top_k=numbers.whole("top_k", defaults.top_k, 0),
        min_p=numbers.real("min_p", 0.0, 0.0, 1.0),
        repetition_penalty=numbers.real("repetition_penalty", defaults.repetition_penalty, 1e-3, 100.0),
        presence_penalty=numbers.real("presence_penalty", 0.0, -100.0, 100.0),
        frequency_penalty=numbers.real("frequency_penalty", 0.0, -100.0, 100.0),
        logit_bias=_read_biases(generation, rules, problems),
        seed=generation.seed if generation.HasField("seed") else random_seed,
        stop_ids=_read_stop_ids(generation, rules, problems),
        num_choices=num_choices,
        top_logprobs=numbers.whole("top_logprobs", 0, 0, min(MAX_LOGPROBS, rules.vocab_size))
        if generation.HasField("top_logprobs")
        else None,
    )


class _Numbers:
    """Reads optional numbers of a `Generation` with their ranges."""

    def __init__(self, generation: generation_pb2.Generation, problems: _Problems) -> None:
        self._generation, self._problems = generation, problems

    def whole(self, name: str, default: int, least: int, most: int | None = None) -> int:
        value: int = getattr(self._generation, name) if self._generation.HasField(name) else default
        return value if self._is_in_range(name, value, least, most) else default

    def real(self, name: str, default: float, least: float, most: float) -> float:
        value: float = getattr(self._generation, name) if self._generation.HasField(name) else default
        return value if self._is_in_range(name, value, least, most) else default

    def _is_in_range(self, name: str, value: float, least: float, most: float | None) -> bool:
        ok = math.isfinite(value) and value >= least and (most is None or value <= most)
        wanted = f"at least {least}" if most is None else f"{least} to {most}"
        self._problems.unless(ok, f"prompt.generation.{name}", f"is {value}; must be {wanted}")
        return ok


def _read_biases(
    generation: generation_pb2.Generation, rules: Rules, problems: _Problems
) -> tuple[tuple[int, float], ...]:
    biases, field = tuple(sorted(generation.logit_bias.items())), "prompt.generation.logit_bias"
    problems.unless(len(biases) <= MAX_LOGIT_BIASES, field, f"at most {MAX_LOGIT_BIASES} fit")
    problems.unless(
        all(token < rules.vocab_size for token, _ in biases), field, f"ids must be below {rules.vocab_size}"
    )
    problems.unless(all(math.isfinite(value) for _, value in biases), field, "must be finite")
    return biases


def _read_stop_ids(generation: generation_pb2.Generation, rules: Rules, problems: _Problems) -> frozenset[int]:
    field = "prompt.generation.stop_token_ids"
    problems.unless(len(generation.stop_token_ids) <= MAX_STOP_IDS, field, f"at most {MAX_STOP_IDS} fit")
    problems.unless(
        all(token < rules.vocab_size for token in generation.stop_token_ids),
        field,
        f"ids must be below {rules.vocab_size}",
    )
    own = () if generation.ignore_eos else rules.defaults.eos_token_ids
    return frozenset(token for token in (*generation.stop_token_ids, *own) if token < rules.vocab_size)


def _read_grammar(generation: generation_pb2.Generation, problems: _Problems) -> GrammarSource | None:
    name = generation.WhichOneof("structure")
    if name is None:
        return None
    field = f"prompt.generation.{name}"
    for other, is_set in (("min_tokens", generation.min_tokens > 0), ("ignore_eos", generation.ignore_eos)):
        problems.unless(not is_set, f"prompt.generation.{other}", f"cannot be used with {name}", "CONFLICT")
    if name == "choice":
        problems.unless(len(generation.choice.options) > 0, field, "needs an option", "REQUIRED")
        problems.unless(all(generation.choice.options), field, "options must not be empty")
        source = choice_source(list(generation.choice.options))
    else:
        source = GrammarSource(GrammarKind(name), getattr(generation, name))
    problems.unless(len(source.text.encode()) <= MAX_GRAMMAR_BYTES, field, f"at most {MAX_GRAMMAR_BYTES} bytes fit")
    return source


def _read_resumed(
    prompt: decoder_service_pb2.Prompt, params: SamplingParams, rules: Rules, problems: _Problems
) -> list[list[int]]:
    """What other decoders have answered so far: tokens that an answer may have, by draws that can be repeated."""
    if not prompt.resumed:
        return []
    problems.unless(
        len(prompt.resumed) == params.num_choices, "prompt.resumed", "must be one a choice", "SIZE_MISMATCH"
    )
    repeatable = params.is_greedy or prompt.generation.HasField("seed")
    problems.unless(repeatable, "prompt.generation.seed", "is needed to resume a sampled answer", "REQUIRED")
    never = {rules.image_token_id, rules.video_token_id, *params.stop_ids}
    for index, choice in enumerate(prompt.resumed):
        field = f"prompt.resumed[{index}].token_ids"
        problems.unless(len(choice.token_ids) <= params.max_tokens, field, f"at most {params.max_tokens} fit")
        possible = all(token < rules.vocab_size and token not in never for token in choice.token_ids)
        problems.unless(possible, field, "has ids that no answer has")
    return [list(choice.token_ids) for choice in prompt.resumed]
