"""The circuit breaker and the retry budget, with a clock in hand."""

from gateway.reach.breaker import FIRST_PAUSE_S, LONGEST_PAUSE_S, THRESHOLD, CircuitBreaker
from gateway.reach.retries import MAX_SAVED, RETRY_SHARE, Retries, RetryBudget


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def opened(clock: Clock) -> CircuitBreaker:
    """A breaker after its first failures."""
    breaker = CircuitBreaker(clock)
    for _ in range(THRESHOLD):
        assert not breaker.is_open
        breaker.failed()
    return breaker


def test_it_opens_after_failures_in_a_row() -> None:
    """Failures with a success between them do not add up."""
    breaker = CircuitBreaker(Clock())
    for _ in range(THRESHOLD - 1):
        breaker.failed()
    breaker.succeeded()
    breaker.failed()
    assert not breaker.is_open
    assert opened(Clock()).is_open


def test_one_probe_after_a_pause_closes_it_on_probation() -> None:
    """It may be probed once the pause is over; after the probe one more failure opens it, for twice as long."""
    clock = Clock()
    breaker = opened(clock)
    assert not breaker.may_probe
    clock.now += FIRST_PAUSE_S
    assert breaker.may_probe
    assert breaker.is_open
    breaker.probed()
    assert not breaker.is_open
    breaker.failed()
    assert breaker.is_open
    clock.now += FIRST_PAUSE_S
    assert not breaker.may_probe
    clock.now += FIRST_PAUSE_S
    assert breaker.may_probe


def test_a_call_that_succeeds_ends_the_probation() -> None:
    """Pauses have a limit, and after a success it takes as many failures as at first to open it."""
    clock = Clock()
    breaker = opened(clock)
    for _ in range(10):
        clock.now += LONGEST_PAUSE_S
        assert breaker.may_probe
        breaker.failed()  # the probe fails, too
    clock.now += LONGEST_PAUSE_S
    breaker.probed()
    breaker.succeeded()
    breaker.failed()
    assert not breaker.is_open


def test_retries_are_a_share_of_all_calls() -> None:
    """When everything fails, a tenth as many retries as calls are made, beyond what had been saved."""
    budget, num_calls = RetryBudget(), 1000
    num_retries = sum(Retries(budget).take() for _ in range(num_calls))
    assert 0 < num_retries <= MAX_SAVED + num_calls * RETRY_SHARE + 1


def test_a_call_is_retried_once() -> None:
    """Two tries, however much is saved."""
    retries = Retries(RetryBudget())
    assert [retries.take(), retries.take()] == [True, False]
