"""`diptych top`: the services as they work, from their metrics."""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cli.scrape import Change, Reading, read, share
from services.common.telemetry import catalogue as c

WINDOW_S = 60.0  # what rates and percentiles are of

Column = tuple[str, Callable[[Change], str]]


class Window:
    """The readings of the last WINDOW_S, by address."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self.addresses = addresses
        self._readings: dict[str, deque[Reading]] = defaultdict(deque)

    def look(self) -> dict[str, Change | None]:
        """Read every page; what has changed within the window, None for who does not answer."""
        with ThreadPoolExecutor(len(self.addresses)) as pool:
            found = dict(zip(self.addresses, pool.map(read, self.addresses), strict=True))
        return {address: self._note(address, reading) for address, reading in found.items()}

    def _note(self, address: str, reading: Reading | None) -> Change | None:
        past = self._readings[address]
        if reading is None:
            return None
        while past and past[0].at < reading.at - WINDOW_S:
            past.popleft()
        if past and past[-1].started_at != reading.started_at:  # another process counts from nothing
            past.clear()
        before = past[0] if past else None
        past.append(reading)
        return Change(before, reading)


def run(addresses: Sequence[str], *, interval_s: float, once: bool) -> int:
    """Shows a frame every `interval_s` until Ctrl-C, or one. Exit code 1 when nobody answers the one."""
    window, console = Window(addresses), Console(highlight=False)
    if once:
        changes = window.look()
        console.print(frame(changes))
        return 0 if any(changes.values()) else 1
    with suppress(KeyboardInterrupt), Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(frame(window.look()), refresh=True)
            time.sleep(interval_s)
    return 0


def frame(changes: dict[str, Change | None]) -> Group:
    """A table for each service, and who does not answer."""
    parts: list[Table | Text] = []
    for service, columns in COLUMNS.items():
        own = {at: change for at, change in changes.items() if change is not None and change.after.service == service}
        if own:
            parts += [_table(service, columns, own), Text()]
    silent = [address for address, change in changes.items() if change is None]
    parts += [Text(f"{address} does not answer", style="red") for address in silent]
    return Group(*parts)


def _table(service: str, columns: Sequence[Column], changes: dict[str, Change]) -> Table:
    table = Table(service, *(title for title, _ in columns), box=None, padding=(0, 1))
    for column in table.columns[1:]:
        column.justify = "right"
    for address, change in changes.items():
        table.add_row(address, *(show(change) for _, show in columns))
    return table


def _count(metric: c.Metric) -> Callable[[Change], str]:
    return lambda change: f"{change.now(metric):.0f}"


def _rate(metric: c.Metric) -> Callable[[Change], str]:
    return lambda change: f"{change.rate(metric):.1f}"


def _ms(metric: c.HistogramMetric, **labels: str) -> Callable[[Change], str]:
    def show(change: Change) -> str:
        found = [change.quantile(quantile, metric, **labels) for quantile in (0.5, 0.95)]
        return " / ".join("-" if value is None else f"{value * 1000:.0f}" for value in found)

    return show


def _hits(level: str, source: str) -> Callable[[Change], str]:
    def show(change: Change) -> str:
        labels = {"level": level, "source": source}
        name = c.CACHE_LOOKUPS.name
        return _percent(share(change.grown(name, result="hit", **labels), change.grown(name, **labels)))

    return show


def _percent(part: float | None) -> str:
    return "-" if part is None else f"{part:.0%}"


def _media_hits(change: Change) -> str:
    name = c.GATEWAY_MEDIA_ITEMS.name
    return _percent(share(change.grown(name, cache="hit"), change.grown(name)))


def _prefix_hits(change: Change) -> str:
    hits, tokens = (change.grown(metric.name) for metric in (c.DECODER_PREFIX_HITS, c.DECODER_PROMPT_TOKENS))
    return _percent(share(hits, tokens))


def _kv_use(change: Change) -> str:
    return _percent(share(change.now(c.DECODER_BLOCKS_USED), change.now(c.DECODER_BLOCKS)))


def _batch(change: Change) -> str:
    found = change.quantile(0.5, c.ENCODER_BATCH_PATCHES)
    return "-" if found is None else f"{found:.0f}"


_REDIS: tuple[Column, ...] = (
    ("redis get ms", _ms(c.CACHE_DURATION, source="redis", operation="get")),
    ("redis errors/s", lambda change: f"{change.rate(c.CACHE_ERRORS, source='redis'):.1f}"),
)

# Times are the median and the 95th percentile.
COLUMNS: dict[str, tuple[Column, ...]] = {
    "gateway": (
        ("running", _count(c.GATEWAY_RUNNING)),
        ("failed/s", _rate(c.RPC_FAILURES)),
        ("tokens/s", _rate(c.GATEWAY_GENERATION_TOKENS)),
        ("first token ms", _ms(c.GATEWAY_FIRST_TOKEN)),
        ("whole ms", _ms(c.GATEWAY_LATENCY)),
        ("media hits", _media_hits),
        ("manifest hits", _hits("manifest", "redis")),
        *_REDIS,
    ),
    "encoder": (
        ("patches", _count(c.ENCODER_PATCHES_ADMITTED)),
        ("waiting", _count(c.ENCODER_WAITING)),
        ("batch patches", _batch),
        ("queue ms", _ms(c.ENCODER_QUEUE_TIME)),
        ("encode ms", _ms(c.ENCODER_ENCODE_TIME)),
        ("local hits", _hits("slice", "local")),
        ("redis hits", _hits("slice", "redis")),
        *_REDIS,
    ),
    "decoder": (
        ("running", _count(c.DECODER_RUNNING)),
        ("waiting", _count(c.DECODER_WAITING)),
        ("kv use", _kv_use),
        ("tokens/s", _rate(c.DECODER_GENERATION_TOKENS)),
        ("first token ms", _ms(c.DECODER_FIRST_TOKEN)),
        ("next token ms", _ms(c.DECODER_INTER_TOKEN)),
        ("prefix hits", _prefix_hits),
        *_REDIS,
    ),
}
