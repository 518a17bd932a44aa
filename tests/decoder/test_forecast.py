"""What the engine refuses because it could not be answered in time."""

import pytest

from services.common.errors import Overloaded
from services.decoder.forecast import Forecast
from tests.decoder.harness import Model, Start


def test_an_answer_waits_for_slots_and_takes_its_own_time() -> None:
    """A slot is free once in the time of an answer; a shorter answer takes its share of it, a longer one no more."""
    forecast = Forecast()
    assert forecast.seconds(100, 10, 2) == 0
    forecast.note(50, 2.0)
    assert forecast.seconds(100, 0, 4) == 2.0
    assert forecast.seconds(25, 6, 4) == 1.0 + 3.0


def test_answers_that_were_given_up_are_not_forgotten() -> None:
    """Those that took longer than usual before they were given up count, those that were left early do not."""
    forecast = Forecast()
    forecast.note(50, 1.0)
    forecast.note_cut(0.1)
    assert forecast.seconds(50, 0, 1) == 1.0
    forecast.note_cut(2.0)
    assert forecast.seconds(50, 0, 1) > 1.0


def test_what_cannot_end_in_time_is_refused_at_once(gqa_model: Model, start: Start) -> None:
    """While every slot is taken, a request that has less time than its turn needs is told when to come back."""
    harness = start(gqa_model, max_sequences=1)
    harness.submit(gqa_model.case(5), max_tokens=50).wait()
    running = harness.submit(gqa_model.case(6), max_tokens=2000, stop_ids=frozenset())
    harness.until(lambda: bool(running.tokens))
    hurried = harness.request(gqa_model.case(7), max_tokens=50)
    with pytest.raises(Overloaded) as caught:
        harness.engine.submit(hurried.request, 1e-6)
    assert caught.value.retry_after_s > 0
    harness.engine.cancel(running.request)


def test_a_free_slot_is_never_refused(gqa_model: Model, start: Start) -> None:
    """However little time is left, an engine with nothing to do begins."""
    harness = start(gqa_model, max_sequences=1)
    case = gqa_model.case(5)
    harness.submit(case).wait()
    harness.until(lambda: harness.engine.load.num_running == 0)
    again = harness.request(case)
    harness.engine.submit(again.request, 1e-6)
    assert again.wait().ids == gqa_model.generate(case, 12)
