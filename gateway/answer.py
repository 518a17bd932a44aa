"""The answer as it grows: the decoder's tokens in, text deltas out, how each choice ended."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from diptych.v1 import chat_service_pb2, decoder_service_pb2, generation_pb2

from .detokenizer import Detokenizer, Piece

Delta = chat_service_pb2.TextDelta
Logprob = generation_pb2.TokenLogprob


@dataclass(slots=True)
class _ChoiceState:
    """One choice: its text so far, and its end once there is one."""

    text: Detokenizer[Logprob]
    end: chat_service_pb2.ChoiceEnd | None = None
    num_tokens: int = 0


class Answer:
    """All choices of one request."""

    def __init__(self, num_choices: int, token_bytes: Callable[[int], bytes], stop: Sequence[str]) -> None:
        self._choices = [_ChoiceState(Detokenizer(token_bytes, stop)) for _ in range(num_choices)]

    @property
    def is_over(self) -> bool:
        """Whether every choice has ended, so that the decoder may stop."""
        return all(choice.end is not None for choice in self._choices)

    @property
    def ends(self) -> list[chat_service_pb2.ChoiceEnd]:
        """How each choice ended, in order; of those that have."""
        return [choice.end for choice in self._choices if choice.end is not None]

    @property
    def num_tokens(self) -> int:
        """Tokens so far over all choices, ending ids included, what a stop string cut off left out."""
        return sum(len(choice.text.token_ids) if choice.end is None else choice.num_tokens for choice in self._choices)

    def add(self, tokens: decoder_service_pb2.TokenDelta) -> list[Delta]:
        """What to show for new tokens; nothing while it is held back."""
        choice = self._choices[tokens.index]
        if choice.end is not None:
            return []  # a stop string ended this choice; the decoder goes on for the others
        shown = Piece[Logprob]("")
        logprobs = tokens.logprobs or [None] * len(tokens.token_ids)
        for token_id, logprob in zip(tokens.token_ids, logprobs, strict=True):
            shown.extend(choice.text.feed(token_id, logprob))
            if choice.text.stop is not None:
                _end_at_stop_string(choice, tokens.index)
                break
        return _delta(tokens.index, shown)

    def finish(self, finished: decoder_service_pb2.GenerateFinished) -> list[Delta]:
        """What was held back of the choices that the decoder ended."""
        deltas: list[Delta] = []
        for index, (choice, end) in enumerate(zip(self._choices, finished.ends, strict=True)):
            if choice.end is None:
                shown = choice.text.finish()
                if choice.text.stop is not None:
                    _end_at_stop_string(choice, index)
                else:
                    _end(choice, index, end)
                deltas += _delta(index, shown)
        return deltas


def _end_at_stop_string(choice: _ChoiceState, index: int) -> None:
    choice.num_tokens = len(choice.text.token_ids)
    choice.end = chat_service_pb2.ChoiceEnd(
        index=index,
        finish_reason=generation_pb2.FINISH_REASON_STOP,
        stop=choice.text.stop,
        token_ids=choice.text.token_ids,
    )


def _end(choice: _ChoiceState, index: int, end: decoder_service_pb2.GenerateFinished.End) -> None:
    choice.num_tokens = end.num_tokens
    choice.end = chat_service_pb2.ChoiceEnd(index=index, finish_reason=end.reason, token_ids=choice.text.token_ids)
    if end.HasField("stop_token_id"):
        choice.end.stop_token_id = end.stop_token_id


def _delta(index: int, shown: Piece[Logprob]) -> list[Delta]:
    return [Delta(index=index, text=shown.text, logprobs=shown.logprobs)] if shown.text or shown.logprobs else []
