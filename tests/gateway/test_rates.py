"""Buckets that fill evenly, by a clock of the test's."""

import random
from math import ceil

from gateway.rates import Rate

SECOND_NS = 10**9


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now = 5 * SECOND_NS

    def __call__(self) -> int:
        return self.now

    def sleep(self, seconds: float) -> None:
        """As a client that has read it in a RetryInfo, of whole milliseconds."""
        assert seconds * 1000 == ceil(seconds * 1000)
        self.now += round(seconds * 1000) * 10**6


def test_a_minutes_worth_at_once_then_evenly() -> None:
    """Sixty, then one a second; not a millisecond earlier."""
    clock = Clock()
    rate = Rate(clock)
    assert [rate.take("acme", 1, 60) for _ in range(61)] == [0.0] * 60 + [1.0]
    clock.sleep(0.999)
    assert rate.take("acme", 1, 60) == 0.001
    clock.sleep(0.001)
    assert [rate.take("acme", 1, 60) for _ in range(2)] == [0.0, 1.0]
    assert rate.take("globex", 60, 60) == 0.0


def test_who_waits_as_told_is_let_in() -> None:
    """At any limit and any amounts: once, at the very millisecond, and never one earlier."""
    draw, clock = random.Random(1), Clock()  # noqa: S311 -- samples
    rate = Rate(clock)
    for _ in range(2000):
        limit, amount = 977, draw.randrange(1, 400)
        if wait_s := rate.take("acme", amount, limit):
            clock.now += round(wait_s * 1000) * 10**6 - 10**6
            assert rate.take("acme", amount, limit) == 0.001
            clock.now += 10**6
            assert rate.take("acme", amount, limit) == 0.0


def test_the_long_run_keeps_the_limit() -> None:
    """Whoever always asks gets a minute's worth, and then the limit of each minute."""
    clock, taken = Clock(), 0
    rate = Rate(clock)
    for _ in range(10 * 600):
        while not rate.take("acme", 7, 700):
            taken += 7
        clock.sleep(0.1)
    assert 10 * 700 <= taken <= 11 * 700


def test_more_than_a_minutes_worth_waits_for_a_full_bucket() -> None:
    """It is let in then, and what comes next waits for all of it."""
    clock = Clock()
    rate = Rate(clock)
    rate.take("acme", 30, 60)
    assert rate.take("acme", 180, 60) == 30.0
    clock.sleep(30.0)
    assert rate.take("acme", 180, 60) == 0.0
    assert rate.take("acme", 1, 60) == 121.0


def test_what_is_given_back_is_there_again() -> None:
    """As if it had not been taken; no more than a full bucket."""
    clock = Clock()
    rate = Rate(clock)
    rate.take("acme", 60, 60)
    rate.give_back("acme", 40, 60)
    assert [rate.take("acme", amount, 60) for amount in (41, 40)] == [1.0, 0.0]
    clock.sleep(3600.0)
    rate.take("acme", 1, 60)
    rate.give_back("acme", 1, 60)
    assert [rate.take("acme", amount, 60) for amount in (60, 1)] == [0.0, 1.0]


def test_no_limit() -> None:
    """0 lets everything in, and counts nothing."""
    rate = Rate(Clock())
    assert [rate.take("acme", 10**12, 0) for _ in range(3)] == [0.0] * 3
    rate.give_back("acme", 10**12, 0)
