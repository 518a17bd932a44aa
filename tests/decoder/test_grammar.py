"""Structured output: what a grammar allows, and that bad ones are refused."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from services.decoder.grammar import GrammarCompiler, GrammarError, GrammarKind, GrammarSource, choice_source
from tests.decoder.harness import Model

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"type": "string"}, "n": {"type": "integer"}},
        "required": ["name", "n"],
    }
)


@pytest.fixture(scope="module")
def compiler(gqa_model: Model) -> GrammarCompiler:
    """A compiler for the test checkpoint's tokenizer."""
    text = gqa_model.checkpoint.text
    return GrammarCompiler(gqa_model.path / "tokenizer.json", text.vocab_size, tuple(gqa_model.end_ids))


@pytest.fixture(scope="module")
def tokenizer(gqa_model: Model) -> Tokenizer:
    """The test checkpoint's tokenizer."""
    return Tokenizer.from_file(str(Path(gqa_model.path) / "tokenizer.json"))


def accepts(compiler: GrammarCompiler, tokenizer: Tokenizer, source: GrammarSource, text: str) -> bool:
    """Whether a whole answer is allowed, token by token, with an end after it."""
    matcher = compiler.compile(source, 1)[0]
    for token in tokenizer.encode(text).ids:
        if not matcher.allowed_tokens(tokenizer.get_vocab_size())[token]:
            return False
        matcher.accept(token)
    end = tokenizer.token_to_id("<|im_end|>")
    return matcher.is_complete or bool(matcher.allowed_tokens(tokenizer.get_vocab_size())[end])


@pytest.mark.parametrize(
    ("source", "good", "bad"),
    [
        (GrammarSource(GrammarKind.JSON_SCHEMA, SCHEMA), '{"name": "Größe", "n": -3}', '{"name": 1, "n": 2}'),
        (GrammarSource(GrammarKind.REGEX, r"[A-Z]{2}\d+"), "AB123", "AB12x"),
        (choice_source(["yes", 'a "quoted"\nline', "東京"]), 'a "quoted"\nline', "no"),
        (choice_source(["yes", "yes please"]), "yes", "yes p"),
        (GrammarSource(GrammarKind.LARK, 'start: "a" digit+\ndigit: /[0-9]/'), "a12", "a1b"),
    ],
)
def test_grammars(compiler: GrammarCompiler, tokenizer: Tokenizer, source: GrammarSource, good: str, bad: str) -> None:
    """An answer that has the form is allowed and may end; one that has not is stopped."""
    assert accepts(compiler, tokenizer, source, good)
    assert not accepts(compiler, tokenizer, source, bad)


def test_whitespace_is_bounded(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    """Between JSON's tokens a few blanks are allowed, not blanks for ever."""
    source = GrammarSource(GrammarKind.JSON_SCHEMA, SCHEMA)
    assert accepts(compiler, tokenizer, source, '{\n  "name": "A",\n  "n": 1\n}')
    assert not accepts(compiler, tokenizer, source, '{"name":' + " " * 20 + '"A", "n": 1}')


@pytest.mark.parametrize(
    "source",
    [
        GrammarSource(GrammarKind.JSON_SCHEMA, '{"type": "obj'),
        GrammarSource(GrammarKind.JSON_SCHEMA, '{"type": "nonsense"}'),
        GrammarSource(GrammarKind.JSON_SCHEMA, "[]"),
        GrammarSource(GrammarKind.REGEX, "["),
        GrammarSource(GrammarKind.LARK, "start: nothing"),
        GrammarSource(GrammarKind.REGEX, "(" * 50_000),
        GrammarSource(GrammarKind.LARK, r"start: /\w+/ & /[^x]+{9999}/"),  # half a minute, found by make fuzz
        GrammarSource(GrammarKind.REGEX, "a{3,9999}"),
    ],
)
def test_bad_grammars_are_refused(compiler: GrammarCompiler, source: GrammarSource) -> None:
    """What does not compile, or is too large, raises GrammarError."""
    with pytest.raises(GrammarError):
        compiler.compile(source, 1)


def test_matchers_are_independent(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    """Matchers of one grammar do not share their state."""
    source = GrammarSource(GrammarKind.REGEX, "ab")
    first, second = compiler.compile(source, 2)
    token = tokenizer.encode("a").ids[0]
    before = second.allowed_tokens(tokenizer.get_vocab_size())
    first.accept(token)
    assert (second.allowed_tokens(tokenizer.get_vocab_size()) == before).all()
    with pytest.raises(GrammarError):
        first.accept(token)
