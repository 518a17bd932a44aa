"""Structured output: grammars compiled by llguidance, and the tokens they allow next."""

import json
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
from numpy.typing import NDArray

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_CACHED = 64
MAX_REPEATS = 2000  # about a second to compile
_REPEAT = re.compile(r"\{\s*([0-9]{0,18})[0-9]*\s*(?:,\s*([0-9]{0,18})[0-9]*\s*)?\}")
LIMITS = LLParserLimits(initial_lexer_fuel=2_000_000, max_grammar_size=100_000, verbose_errors=False)
WHITESPACE: "JsonCompileOptions" = {
    "whitespace_pattern": r"[\x20\x0A]{0,8}"
}  # bounded: a small model would otherwise add it for ever


class GrammarKind(Enum):
    """The forms a grammar may be given in; the value is its field in `Generation`."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    CHOICE = "choice"
    LARK = "grammar"


@dataclass(frozen=True, slots=True)
class GrammarSource:
    """A grammar as it was sent. A choice is its options as a JSON list."""

    kind: GrammarKind
    text: str


def choice_source(options: list[str]) -> GrammarSource:
    """The grammar of an answer that is one of `options`."""
    return GrammarSource(GrammarKind.CHOICE, json.dumps(options, ensure_ascii=False))


class GrammarError(Exception):
    """A grammar does not compile, or needs more than the limits allow."""


class Matcher:
    """What one answer may still become. Each choice has its own."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def allowed_tokens(self, vocab_size: int) -> NDArray[np.bool_]:
        """Which of the ids [vocab_size] may come next."""
        bits = allocate_token_bitmask(1, vocab_size)
        fill_next_token_bitmask(self._matcher, bits)
        return np.unpackbits(bits.view(np.uint8), count=vocab_size, bitorder="little").astype(np.bool_)

    def accept(self, token_id: int) -> None:
        """Go on with a token. Raises GrammarError if it was not allowed."""
        if not self._matcher.consume_token(token_id):
            raise GrammarError(self._matcher.get_error())

    def accept_all(self, token_ids: list[int]) -> None:
        """Go on with several. Raises GrammarError as `accept` does."""
        for token_id in token_ids:
            self.accept(token_id)

    @property
    def is_complete(self) -> bool:
        """Whether nothing can follow any more."""
        return bool(self._matcher.is_stopped())


class GrammarCompiler:
    """Compiles grammars for one tokenizer, off the event loop; thread-safe. The latest ones are kept."""

    def __init__(self, tokenizer_file: Path, vocab_size: int, end_ids: tuple[int, ...]) -> None:
        self._file, self._vocab_size, self._end_ids = tokenizer_file, vocab_size, end_ids
        self._lock, self._loading = threading.Lock(), threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[GrammarSource, LLMatcher] = OrderedDict()

    def compile(self, source: GrammarSource, count: int) -> list[Matcher]:
        """`count` fresh matchers. GrammarError says what is wrong with the grammar."""
        with self._lock:
            compiled = self._compiled.get(source)
        if compiled is None:
            compiled = self._compile(source)
        self._keep(source, compiled)
        return [Matcher(compiled.deep_copy()) for _ in range(count)]

    def _keep(self, source: GrammarSource, compiled: LLMatcher) -> None:
        with self._lock:
            self._compiled[source] = compiled
            self._compiled.move_to_end(source)
            if len(self._compiled) > MAX_CACHED:
                self._compiled.popitem(last=False)

    def _compile(self, source: GrammarSource) -> LLMatcher:
        if source.kind is not GrammarKind.CHOICE:  # whose options are no expressions
            _require_few_repeats(source.text)
        matcher = LLMatcher(self._load_tokenizer(), _grammar(source), log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise GrammarError(matcher.get_error())
        return matcher

    def _load_tokenizer(self) -> LLTokenizer:
        with self._loading:
            if self._tokenizer is None:
                text = self._file.read_text(encoding="utf-8")
                self._tokenizer = LLTokenizer(text, n_vocab=self._vocab_size, eos_token=list(self._end_ids))
            return self._tokenizer


def _require_few_repeats(text: str) -> None:
    """Counted repeats of expressions, {n} or {m,n}: what they cost to compile grows with the square of n."""
    if any(int(count) > MAX_REPEATS for counts in _REPEAT.findall(text) for count in counts if count):
        raise GrammarError(f"repeats an expression more than {MAX_REPEATS} times")


def _grammar(source: GrammarSource) -> str:
    try:
        match source.kind:
            case GrammarKind.JSON_SCHEMA:
                return LLMatcher.grammar_from_json_schema(source.text, overrides=WHITESPACE)
            case GrammarKind.REGEX:
                return LLMatcher.grammar_from_regex(source.text)
            case GrammarKind.CHOICE:
                options = " | ".join(json.dumps(option, ensure_ascii=False) for option in json.loads(source.text))
                return LLMatcher.grammar_from_lark(f"start: {options}")
            case GrammarKind.LARK:
                return LLMatcher.grammar_from_lark(source.text)
    except ValueError as error:
        raise GrammarError(str(error)) from error
