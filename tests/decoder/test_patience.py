"""A short text before media waits a moment for it, so that cached embeddings do not cost a step of their own."""

import pytest

from services.decoder.scheduler import MEDIA_PATIENCE_S, SHORT_START_TOKENS, Scheduler
from services.decoder.sequence import Request
from tests.decoder.harness import Harness, Model

PICTURE = ("image", (1, 2, 3))


class Clock:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def _scheduler(model: Model, clock: Clock) -> Scheduler:
    scheduler = Harness(model, max_step_tokens=1024).engine._scheduler
    scheduler._clock = clock
    return scheduler


def _request(model: Model, clock: Clock, num_before: int) -> Request:
    """A prompt whose picture has not come yet."""
    request = Harness(model).request(model.case(num_before, PICTURE, 4), with_rows=False).request
    request.arrived = clock.now
    return request


def _ends(scheduler: Scheduler) -> list[int]:
    return [chunk.end for chunk in scheduler.schedule()]


def test_a_picture_that_comes_soon_is_computed_in_one_step(gqa_model: Model, clock: Clock) -> None:
    """Nothing is computed before it, and then everything at once."""
    scheduler, request = _scheduler(gqa_model, clock), _request(gqa_model, clock, 11)
    scheduler.add(request)
    assert _ends(scheduler) == []
    assert scheduler.patience_s == pytest.approx(MEDIA_PATIENCE_S)
    request.media[0].num_rows = request.media[0].num_tokens
    assert _ends(scheduler) == [len(request.token_ids)]


def test_patience_ends(gqa_model: Model, clock: Clock) -> None:
    """What has to be encoded first lets the text begin after a moment."""
    scheduler = _scheduler(gqa_model, clock)
    scheduler.add(_request(gqa_model, clock, 11))
    clock.now += MEDIA_PATIENCE_S * 0.9
    assert _ends(scheduler) == []
    clock.now += MEDIA_PATIENCE_S * 0.2
    assert _ends(scheduler) == [11]
    assert scheduler.patience_s is None


def test_a_long_text_does_not_wait(gqa_model: Model, clock: Clock) -> None:
    """Text that is worth a step of its own begins at once, and text without media too."""
    scheduler = _scheduler(gqa_model, clock)
    scheduler.add(_request(gqa_model, clock, SHORT_START_TOKENS))
    text = Harness(gqa_model).request(gqa_model.case(20)).request
    text.arrived = clock.now
    scheduler.add(text)
    assert sorted(_ends(scheduler)) == [20, SHORT_START_TOKENS]
