"""`diptych top` counts as Prometheus does."""

import math

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from rich.console import Console

from cli.scrape import Change, Reading, histogram_quantile, parse
from cli.top import frame
from services.common.telemetry import catalogue
from services.common.telemetry.process import Telemetry


def reading(registry: CollectorRegistry, at: float) -> Reading:
    """What a registry's page says."""
    return Reading(at, parse(generate_latest(registry).decode()))


@pytest.mark.parametrize(
    ("quantile", "counts", "expected"),
    [(0.5, [0, 10, 10], 1.5), (0.95, [5, 10, 10], 1.9), (0.99, [1, 1, 10], 2.0), (0.5, [0, 0, 0], None)],
)
def test_quantiles_are_prometheus_own(quantile: float, counts: list[float], expected: float | None) -> None:
    """Linear within a bucket, the last finite bound beyond, nothing of nothing."""
    assert histogram_quantile(quantile, [1.0, 2.0, math.inf], counts) == expected


def test_a_change_is_what_came_between() -> None:
    """Rates and quantiles leave out what was there before."""
    registry = CollectorRegistry()
    tokens, gaps = (
        catalogue.DECODER_GENERATION_TOKENS.on(registry),
        catalogue.DECODER_INTER_TOKEN.on(registry),
    )
    tokens.inc(1000)
    gaps.observe(50)
    before = reading(registry, 0.0)
    tokens.inc(20)
    gaps.observe(0.02)
    change = Change(before, reading(registry, 10.0))
    assert change.rate(catalogue.DECODER_GENERATION_TOKENS) == 2.0
    found = change.quantile(0.95, catalogue.DECODER_INTER_TOKEN)
    assert found is not None
    assert 0.01 < found <= 0.025


def test_a_frame_says_who_is_there_and_who_is_not() -> None:
    """Each service has its table with its figures; an address that nobody answers at is named."""
    telemetry = Telemetry("decoder")
    catalogue.DECODER_BLOCKS_USED.on(telemetry.registry).set(30)
    catalogue.DECODER_BLOCKS.on(telemetry.registry).set(40)
    console = Console(width=160)
    with console.capture() as capture:
        console.print(frame({"host:1": Change(None, reading(telemetry.registry, 1.0)), "host:2": None}))
    shown = capture.get()
    assert "decoder" in shown
    assert "75%" in shown
    assert "host:2 does not answer" in shown
