"""Text as it comes: the same as all at once, and nothing of a stop string."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.detokenizer import Detokenizer
from gateway.prompt import PromptBuilder


def run(text: bytes, cuts: list[int], stop: list[str]) -> tuple[str, Detokenizer[int]]:
    """Feed `text` in pieces that end at `cuts`."""
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    detokenizer = Detokenizer[int](pieces.__getitem__, stop)
    shown = ""
    for token_id in range(len(pieces)):
        shown += detokenizer.feed(token_id).text
        if detokenizer.stop is not None:
            return shown, detokenizer
    return shown + detokenizer.finish().text, detokenizer


@given(data=st.data())
def test_deltas_joined_are_the_whole_decode(prompts: PromptBuilder, data: st.DataObject) -> None:
    """For any ids, special and unused ones too, the deltas joined equal `tokenizer.decode` of them all."""
    tokenizer = prompts.tokenizer
    size = tokenizer._tokenizer.get_vocab_size()
    token_ids = data.draw(st.lists(st.integers(0, size + 3), max_size=40))
    detokenizer = Detokenizer[int](tokenizer.token_bytes)
    shown = "".join(detokenizer.feed(token_id).text for token_id in token_ids) + detokenizer.finish().text
    assert shown == tokenizer._tokenizer.decode(token_ids, skip_special_tokens=True)
    assert detokenizer.token_ids == token_ids


@given(text=st.text(max_size=20), data=st.data())
def test_deltas_are_whole_characters(text: str, data: st.DataObject) -> None:
    """Valid text never shows a replacement character, wherever tokens cut it."""
    encoded = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(encoded)), max_size=8)))
    shown, _ = run(encoded, cuts, [])
    assert shown == text


def test_an_unfinished_character_is_replaced_only_at_the_end() -> None:
    """The first bytes of a character wait; at the end they become U+FFFD."""
    detokenizer = Detokenizer[int]([b"a", b"\xe6\x9d"].__getitem__)
    assert [detokenizer.feed(0).text, detokenizer.feed(1).text, detokenizer.finish().text] == ["a", "", "\ufffd"]


@given(
    text=st.text("abc", max_size=16),
    stop=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
    data=st.data(),
)
def test_stop_strings_do_not_depend_on_how_tokens_cut(text: str, stop: list[str], data: st.DataObject) -> None:
    """The text ends where it would if it came one character at a time, and holds nothing of the stop string."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    shown, detokenizer = run(text.encode(), cuts, stop)
    expected, by_character = run(text.encode(), list(range(1, len(text))), stop)
    assert (shown, detokenizer.stop) == (expected, by_character.stop)
    assert text.startswith(shown)
    assert not any(one in shown for one in stop)
    if detokenizer.stop is None:
        assert shown == text


def test_tokens_of_a_stop_string_are_not_kept() -> None:
    """Ids and log probabilities end with the token that the shown text ends in."""
    pieces = [b"one ", b"two", b" ST", b"OP", b" more"]
    detokenizer = Detokenizer[int](pieces.__getitem__, ["STOP"])
    shown = [detokenizer.feed(token_id, logprob=token_id * 10) for token_id in range(4)]
    assert "".join(piece.text for piece in shown) == "one two "
    assert detokenizer.token_ids == [0, 1, 2]
    assert [logprob for piece in shown for logprob in piece.logprobs] == [0, 10, 20]


def test_log_probabilities_come_with_their_text() -> None:
    """A token whose text is held back shows its log probability when the text is released."""
    pieces = [b"S", b"x"]
    detokenizer = Detokenizer[int](pieces.__getitem__, ["STOP"])
    assert detokenizer.feed(0, logprob=1).logprobs == []
    assert detokenizer.feed(1, logprob=2).logprobs == [1, 2]
