"""Generation options: what is wrong with them, and what they are after defaults."""

import json
import secrets
from dataclasses import dataclass

from diptych.v1 import generation_pb2

from services.common.checkpoint import GenerationDefaults
from services.common.errors import InvalidRequest, Violation

from .checks import Checks
from .settings import Limits

MAX_PRIORITY = 9  # of generation.proto

_BOUNDS = {
    "temperature": (0.0, 100.0),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-100.0, 100.0),
    "frequency_penalty": (-100.0, 100.0),
}


def check_generation(checks: Checks, generation: generation_pb2.Generation, limits: Limits, vocab_size: int) -> None:
    """Every violation in the options, as far as they can be judged without the prompt."""
    for name, (least, most) in _BOUNDS.items():
        if generation.HasField(name):
            checks.finite(f"generation.{name}", getattr(generation, name), least, most)
    if generation.HasField("top_p"):
        checks.require(0 < generation.top_p <= 1, "generation.top_p", "must be above 0 and at most 1")
    if generation.HasField("repetition_penalty"):
        good = 0 < generation.repetition_penalty <= 100
        checks.require(good, "generation.repetition_penalty", "must be above 0 and at most 100")
    _check_counts(checks, generation, limits)
    _check_tokens(checks, generation, limits, vocab_size)
    _check_stops(checks, generation, limits)
    _check_structure(checks, generation, limits)


def _check_counts(checks: Checks, generation: generation_pb2.Generation, limits: Limits) -> None:
    bounds = {
        "max_tokens": (1, limits.max_completion_tokens),
        "min_tokens": (0, limits.max_completion_tokens),
        "num_choices": (1, limits.max_choices),
        "top_logprobs": (0, limits.max_top_logprobs),
        "priority": (0, MAX_PRIORITY),
    }
    for name, (least, most) in bounds.items():
        if generation.HasField(name):
            good = least <= getattr(generation, name) <= most
            checks.require(good, f"generation.{name}", f"must be between {least} and {most}")
    if generation.HasField("min_tokens") and generation.HasField("max_tokens"):
        checks.require(generation.min_tokens <= generation.max_tokens, "generation.min_tokens", "is above max_tokens")


def _check_tokens(checks: Checks, generation: generation_pb2.Generation, limits: Limits, vocab_size: int) -> None:
    below = f"must be token ids below {vocab_size}"
    most = limits.max_logit_biases
    checks.require(len(generation.logit_bias) <= most, "generation.logit_bias", f"has more than {most} entries")
    for token_id, bias in generation.logit_bias.items():
        checks.require(token_id < vocab_size, f"generation.logit_bias[{token_id}]", below)
        checks.finite(f"generation.logit_bias[{token_id}]", bias, -100.0, 100.0)
    most = limits.max_stops
    checks.require(len(generation.stop_token_ids) <= most, "generation.stop_token_ids", f"has more than {most} ids")
    for index, token_id in enumerate(generation.stop_token_ids):
        checks.require(token_id < vocab_size, f"generation.stop_token_ids[{index}]", below)


def _check_stops(checks: Checks, generation: generation_pb2.Generation, limits: Limits) -> None:
    most = limits.max_stops
    checks.require(len(generation.stop) <= most, "generation.stop", f"has more than {most} strings")
    for index, stop in enumerate(generation.stop):
        good = 1 <= len(stop) <= limits.max_stop_chars
        checks.require(good, f"generation.stop[{index}]", f"must have 1 to {limits.max_stop_chars} characters")


def _check_structure(checks: Checks, generation: generation_pb2.Generation, limits: Limits) -> None:
    kind = generation.WhichOneof("structure")
    if kind is None:
        return
    path = f"generation.{kind}"
    if kind == "choice":
        options = generation.choice.options
        checks.require(len(options) > 0, f"{path}.options", "must have at least one string", "REQUIRED")
        for index, option in enumerate(options):
            checks.require(option != "", f"{path}.options[{index}]", "is empty", "REQUIRED")
        num_chars = sum(map(len, options))
    else:
        text: str = getattr(generation, kind)
        checks.require(text != "", path, "is empty", "REQUIRED")
        num_chars = len(text)
    if not checks.require(
        num_chars <= limits.max_structure_chars, path, f"exceeds {limits.max_structure_chars} characters"
    ):
        return
    if kind == "json_schema" and generation.json_schema:
        checks.require(_is_schema(generation.json_schema), path, "is not a JSON schema in JSON text", "MALFORMED")


def _is_schema(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | bool)
    except (ValueError, RecursionError):
        return False


@dataclass(frozen=True, slots=True)
class GenerationRules:
    """The checkpoint's defaults and the operator's word on them."""

    defaults: GenerationDefaults
    greedy: bool
    max_completion_tokens: int

    def model_defaults(self) -> generation_pb2.Generation:
        """What a request that names nothing gets, apart from what depends on its prompt."""
        sampled = self.defaults.do_sample and not self.greedy
        return generation_pb2.Generation(
            max_tokens=self.max_completion_tokens,
            min_tokens=0,
            temperature=self.defaults.temperature if sampled else 0.0,
            top_p=self.defaults.top_p,
            top_k=self.defaults.top_k,
            min_p=0.0,
            repetition_penalty=self.defaults.repetition_penalty,
            presence_penalty=0.0,
            frequency_penalty=0.0,
            num_choices=1,
            priority=0,
        )

    def effective(self, asked: generation_pb2.Generation, num_free_tokens: int) -> generation_pb2.Generation:
        """Every scalar set, except `top_logprobs`, whose absence means that none are wanted.

        `num_free_tokens` is what the context has left for the answer. The request stands over the defaults. Raises
        InvalidRequest when that leaves less than `min_tokens`.
        """
        result = self.model_defaults()
        result.MergeFrom(asked)
        result.max_tokens = min(result.max_tokens, num_free_tokens)
        if result.min_tokens > result.max_tokens:
            description = f"is above the {result.max_tokens} tokens that the answer may have"
            raise InvalidRequest([Violation("generation.min_tokens", description, "OUT_OF_RANGE")])
        if not result.HasField("seed"):
            result.seed = secrets.randbits(63)
        return result
