"""A conversation as token ids: rendered by the checkpoint's template, safely tokenised, placeholders expanded.

The prompt is rendered with the users' words in it, so a template may trim or test them; only the characters with which
a control token begins are swapped for private stand-ins first. Whatever spells a control token after rendering is
therefore the template's own. Text between two control tokens is then tokenised in one piece, stand-ins swapped back.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from services.common.errors import InvalidRequest, Violation
from services.common.telemetry.spans import traced

from .template import ChatTemplate, MediaSlot, TemplateRefusalError, Turn
from .tokenization import TextTokenizer


@dataclass(frozen=True, slots=True)
class Prompt:
    """`rendered`: a placeholder for each media item; `token_ids`: expanded; `offsets`: of each item's first pad."""

    rendered: str
    token_ids: list[int]
    offsets: tuple[int, ...]
    num_media_tokens: int


class PromptBuilder:
    """Builds prompts for one checkpoint; `pad_ids` are its (image, video) pads."""

    def __init__(
        self, template: ChatTemplate, tokenizer: TextTokenizer, *, image_pad_id: int, video_pad_id: int
    ) -> None:
        self.template = template
        self.tokenizer = tokenizer
        self._pad_ids = {"image": image_pad_id, "video": video_pad_id}
        self._first_characters = sorted({token[0] for token in tokenizer.control_tokens})

    @traced("template")
    def build(self, turns: Sequence[Turn], *, add_vision_id: bool = False) -> Prompt:
        """Raises InvalidRequest when the template does not take the conversation. Runs for long on long texts."""
        if add_vision_id and not self.template.numbers_media:
            raise _refused("conversation.add_vision_id", "this checkpoint's template does not number media")
        mask = self._mask_for(turns)
        try:
            masked = self.template.render([_masked(turn, mask) for turn in turns], add_vision_id=add_vision_id)
        except TemplateRefusalError as error:
            raise _refused("conversation.messages", f"the checkpoint's chat template refuses it: {error}") from error
        return self._tokenise(masked, {stand_in: chr(first) for first, stand_in in mask.items()}, turns)

    def _mask_for(self, turns: Sequence[Turn]) -> dict[int, str]:
        """A stand-in for each character that begins a control token: private characters that occur nowhere else."""
        taken = set(self.template.source).union(*_texts(turns))
        free = (chr(point) for points in _PRIVATE_USE for point in points if chr(point) not in taken)
        mask = {ord(first): stand_in for first, stand_in in zip(self._first_characters, free, strict=False)}
        if len(mask) < len(self._first_characters):
            raise _refused("conversation.messages", "the texts use up all of Unicode's private characters")
        return mask

    def _tokenise(self, masked: str, unmask: dict[str, str], turns: Sequence[Turn]) -> Prompt:
        swap_back = str.maketrans(unmask)
        slots = iter([part for turn in turns for part in turn.parts if isinstance(part, MediaSlot)])
        token_ids: list[int] = []
        offsets: list[int] = []
        num_media_tokens = 0
        for piece in self.tokenizer.split_control(masked):
            if isinstance(piece, str):
                token_ids += self.tokenizer.encode_text(piece.translate(swap_back))
            elif piece in self._pad_ids.values():
                slot = self._next_slot(slots, piece)
                offsets.append(len(token_ids))
                token_ids += [piece] * slot.num_tokens
                num_media_tokens += slot.num_tokens
            else:
                token_ids.append(piece)
        if next(slots, None) is not None:
            raise _refused("conversation.messages", "the checkpoint's chat template leaves out a media item")
        return Prompt(masked.translate(swap_back), token_ids, tuple(offsets), num_media_tokens)

    def _next_slot(self, slots: Iterable[MediaSlot], pad_id: int) -> MediaSlot:
        slot = next(iter(slots), None)
        if slot is None or self._pad_ids[slot.kind] != pad_id:
            raise _refused("conversation.messages", "the checkpoint's chat template changes the order of media")
        return slot


# The basic plane's private use area, then plane 15.
_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE))


def _texts(turns: Sequence[Turn]) -> list[str]:
    return [part for turn in turns for part in turn.parts if isinstance(part, str)]


def _masked(turn: Turn, mask: dict[int, str]) -> Turn:
    parts = tuple(part.translate(mask) if isinstance(part, str) else part for part in turn.parts)
    return Turn(turn.role, parts)


def _refused(field: str, description: str) -> InvalidRequest:
    return InvalidRequest([Violation(field=field, description=description, reason="CANNOT_APPLY")])
