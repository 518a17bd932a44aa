"""How much of a prompt may be computed beside running streams, so that their next tokens are not held up."""

SMOOTHING = 0.2
MIN_TOKENS = 8  # a prompt always goes on


class Pace:
    """Learns what steps cost. `max_stretch`: how much longer a step with a prompt's chunk may take than one without."""

    def __init__(self, max_stretch: float) -> None:
        self._max_stretch = max_stretch
        self._stream_step_s: float | None = None
        self._prompt_token_s: float | None = None
        self.tokens_per_s = 0.0

    def note(self, num_streams: int, num_prompt_tokens: int, seconds: float) -> None:
        """Take a step's duration into account."""
        self.tokens_per_s = smoothed(self.tokens_per_s or None, (num_streams + num_prompt_tokens) / max(seconds, 1e-9))
        if not num_prompt_tokens:
            self._stream_step_s = smoothed(self._stream_step_s, seconds)
            return
        own_s = seconds - (self._stream_step_s or 0.0 if num_streams else 0.0)
        self._prompt_token_s = smoothed(self._prompt_token_s, max(own_s, seconds / 10) / num_prompt_tokens)

    def prefill_tokens(self, num_streams: int, most: int) -> int:
        """Prompt tokens, at most `most`, for a step that also continues `num_streams` streams."""
        if not num_streams or self._stream_step_s is None or self._prompt_token_s is None:
            return most
        return min(most, max(MIN_TOKENS, int((self._max_stretch - 1) * self._stream_step_s / self._prompt_token_s)))


def smoothed(old: float | None, new: float) -> float:
    """A running mean that forgets: SMOOTHING is the newest value's share."""
    return new if old is None else old + SMOOTHING * (new - old)
