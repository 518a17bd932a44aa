"""An answer whose decoder was lost: what has been said of it, and how often another decoder may go on."""

import asyncio

from diptych.v1 import decoder_service_pb2

MAX_RESUMES = 4
PATIENCE_S = 30.0
_FIRST_PAUSE_S = 0.1


class Progress:
    """The ids of each choice so far. With `resume` they are worth keeping when the decoder goes away."""

    def __init__(self, num_choices: int, *, resume: bool) -> None:
        self._choices: list[list[int]] = [[] for _ in range(num_choices)]
        self._resume = resume
        self._num_resumes = 0

    @property
    def has_begun(self) -> bool:
        """Whether any token has come."""
        return any(self._choices)

    @property
    def patience_s(self) -> float:
        """How long to wait for a decoder when none is there: the client has asked for that by `resume`."""
        return PATIENCE_S if self.has_begun else 0.0

    def note(self, response: decoder_service_pb2.GenerateResponse) -> None:
        """Keep what the decoder says."""
        if response.WhichOneof("event") == "tokens":
            self._choices[response.tokens.index].extend(response.tokens.token_ids)

    def continued(self, prompt: decoder_service_pb2.Prompt) -> decoder_service_pb2.Prompt:
        """The prompt, with the answer so far if there is one."""
        if not self.has_begun:
            return prompt
        resumed = [decoder_service_pb2.ResumedChoice(token_ids=token_ids) for token_ids in self._choices]
        longer = decoder_service_pb2.Prompt(resumed=resumed)
        longer.MergeFrom(prompt)
        return longer

    async def may_resume(self) -> bool:
        """Whether another decoder may go on. Pauses longer each time: a prompt may be what its decoders die of."""
        self._num_resumes += 1
        if not self._resume or self._num_resumes > MAX_RESUMES:
            return False
        await asyncio.sleep(_FIRST_PAUSE_S * (2 ** (self._num_resumes - 1) - 1))
        return True
