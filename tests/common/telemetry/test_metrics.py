"""The catalogue, and what counts by it."""

import asyncio
import re
import ssl
import urllib.request
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from prometheus_client import CollectorRegistry, generate_latest

from services.common.cache.errors import StoreDown, StoreError
from services.common.cache.memory import MemoryStore
from services.common.cache.metered import MeteredStore
from services.common.cache.store import Value
from services.common.errors import Overloaded
from services.common.server import ServerSettings
from services.common.telemetry.catalogue import CATALOGUE, CounterMetric, Metric
from services.common.telemetry.metrics import MAX_REASONS, CacheMetrics, RpcMetrics
from services.common.telemetry.process import METRICS_EVENT, Telemetry
from tests.certificates import Authority
from tests.common.conftest import Handlers, Serving

LABELS = {
    "service",
    "version",
    "method",
    "code",
    "reason",
    "level",
    "source",
    "result",
    "operation",
    "direction",
    "cache",
    "quota",
}


@pytest.mark.parametrize("metric", CATALOGUE, ids=lambda metric: metric.name)
def test_names_and_labels_keep_to_the_conventions(metric: Metric) -> None:
    """Prefix, base units, `_total` on counters alone, and labels from a short list that names nobody."""
    assert re.fullmatch(r"diptych(_[a-z0-9]+)+", metric.name)
    assert metric.name.endswith("_total") == isinstance(metric, CounterMetric)
    assert not re.search(r"_(ms|milliseconds|mb|kb|percent)(_|$)", metric.name)
    assert set(metric.labels) <= LABELS
    assert metric.help.endswith(".")


def test_two_processes_in_one_share_nothing() -> None:
    """Registries are each their own; none is global."""
    first, second = Telemetry("gateway"), Telemetry("encoder")
    first.cache.lookups.labels("slice", "redis", "hit").inc()
    assert (
        first.registry.get_sample_value("diptych_build_info", {"service": "gateway", "version": version("diptych")})
        == 1
    )
    labels = {"level": "slice", "source": "redis", "result": "hit"}
    assert second.registry.get_sample_value("diptych_cache_lookups_total", labels) is None


def test_reasons_are_bounded() -> None:
    """However many reasons errors come to have, the series stay few."""
    registry = CollectorRegistry()
    metrics = RpcMetrics(registry)
    for number in range(MAX_REASONS + 10):
        metrics.failed("Chat", f"REASON_{number}")
    assert registry.get_sample_value("diptych_rpc_failures_total", {"method": "Chat", "reason": "OTHER"}) == 10


async def test_a_store_is_counted_by_level_and_result() -> None:
    """Hits, misses, bytes and time; keys are never labels."""
    registry = CollectorRegistry()
    store = MeteredStore(MemoryStore(ttl_s=60, max_bytes=1000), CacheMetrics(registry))
    await store.put({"diptych:tag:slice:ab": b"12345"})
    await store.get(["diptych:tag:slice:ab", "diptych:tag:slice:cd"])
    await store.get(["diptych:tag:manifest:ab"])

    def lookups(level: str, result: str) -> float | None:
        labels = {"level": level, "source": "local", "result": result}
        return registry.get_sample_value("diptych_cache_lookups_total", labels)

    assert (lookups("slice", "hit"), lookups("slice", "miss"), lookups("manifest", "miss")) == (1, 1, 1)
    read = registry.get_sample_value("diptych_cache_bytes_total", {"source": "local", "direction": "read"})
    assert read == 5
    assert b"ab" not in re.findall(rb'="([^"]*)"', generate_latest(registry))


@pytest.mark.parametrize(("error", "reason"), [(StoreError("no answer"), "failed"), (StoreDown("out"), "down")])
async def test_a_store_that_fails_is_an_error_and_no_latency(error: StoreError, reason: str) -> None:
    """An outage is counted by its kind and does not look like a fast store."""
    registry = CollectorRegistry()
    store = MemoryStore(ttl_s=60, max_bytes=1000)

    async def fail(keys: Sequence[str]) -> list[Value | None]:  # noqa: ARG001 -- a store's signature
        raise error

    store.get = fail  # type: ignore[method-assign]
    with pytest.raises(StoreError):
        await MeteredStore(store, CacheMetrics(registry)).get(["diptych:tag:slice:ab"])
    labels = {"source": "local", "operation": "get"}
    assert registry.get_sample_value("diptych_cache_errors_total", {**labels, "reason": reason}) == 1
    assert registry.get_sample_value("diptych_cache_operation_duration_seconds_count", labels) is None


async def test_calls_are_counted_by_how_they_end(serving: Serving) -> None:
    """A call that is refused shows its code and reason; health checks are not counted."""
    telemetry = Telemetry("gateway")

    async def refuse(_request: bytes, _context: object) -> bytes:
        raise Overloaded

    handlers: Handlers = {"Do": grpc.unary_unary_rpc_method_handler(refuse)}
    async with (
        serving(handlers, guards=[telemetry.interceptor()]) as running,
        grpc.aio.insecure_channel(running.address) as channel,
    ):
        call: Any = channel.unary_unary
        with pytest.raises(grpc.aio.AioRpcError):
            await call("/test.Service/Do")(b"")
        await call("/grpc.health.v1.Health/Check")(b"")
    value = telemetry.registry.get_sample_value
    assert value("diptych_rpc_failures_total", {"method": "Do", "reason": "OVERLOADED"}) == 1
    assert value("diptych_rpc_duration_seconds_count", {"method": "Do", "code": "RESOURCE_EXHAUSTED"}) == 1
    assert value("diptych_rpc_requests_running", {"method": "Do"}) == 0
    assert value("diptych_rpc_requests_running", {"method": "Check"}) is None


async def test_metrics_are_served_over_tls_where_there_is_a_certificate(tmp_path: Path) -> None:
    """With a certificate the port speaks HTTPS, and asks scrapers for none."""
    authority = Authority(tmp_path / "certificates")
    pair = authority.issue("service")
    trust = ssl.create_default_context(cafile=str(authority.ca))
    with structlog.testing.capture_logs() as lines:
        async with Telemetry("gateway").served("127.0.0.1:0", ServerSettings(tls_cert=pair.cert, tls_key=pair.key)):
            (address,) = [line["address"] for line in lines if line["event"] == METRICS_EVENT]
            page = await asyncio.to_thread(_read, f"https://{address}/metrics", trust)
    assert 'diptych_build_info{service="gateway"' in page


async def test_a_renewed_certificate_is_shown_to_the_next_scraper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changed files hold without a restart; half a pair changes nothing."""
    monkeypatch.setattr("services.common.watched_files.LOOK_INTERVAL_S", 0)
    old, new = (Authority(tmp_path / name, name) for name in ("old", "new"))
    pair, fresh = old.issue("service"), new.issue("service")
    trusts = [ssl.create_default_context(cafile=str(authority.ca)) for authority in (old, new)]
    with structlog.testing.capture_logs() as lines:
        async with Telemetry("gateway").served("127.0.0.1:0", ServerSettings(tls_cert=pair.cert, tls_key=pair.key)):
            (address,) = [line["address"] for line in lines if line["event"] == METRICS_EVENT]
            for path, source, trust in (
                (pair.key, fresh.key, trusts[0]),
                (pair.cert, fresh.cert, trusts[1]),
            ):
                path.write_bytes(source.read_bytes())
                assert await asyncio.to_thread(_read, f"https://{address}/metrics", trust)


def test_the_port_is_guarded_like_the_services(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other machines can scrape over TLS or where that was allowed in so many words, else the start fails."""
    monkeypatch.setenv("DIPTYCH_METRICS_LISTEN", "0.0.0.0:9464")
    with pytest.raises(ValueError, match="DIPTYCH_METRICS_LISTEN"):
        ServerSettings()
    assert ServerSettings(allow_insecure=True).metrics_listen == "0.0.0.0:9464"


def _read(url: str, trust: ssl.SSLContext) -> str:
    with urllib.request.urlopen(url, context=trust, timeout=5) as page:  # noqa: S310 -- ours
        text: str = page.read().decode()
        return text
