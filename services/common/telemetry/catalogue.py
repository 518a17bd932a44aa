"""Every metric: its name, what it means, its labels. docs/monitoring.md, the alerts and the dashboard are held to it.

Names follow Prometheus (base units, `_total` for counters) and, where vLLM has the same thing, its word for it. Labels
have few values: methods, codes and reasons that stand in this code, never a tenant, an address or anything of a
request.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

# From a cache's millisecond to the longest request, about 2.3 times a step.
SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
)
PATCHES = tuple(float(1 << power) for power in range(4, 20, 2))


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric that a registry can be given."""

    name: str
    help: str
    labels: tuple[str, ...] = ()

    @property
    def kind(self) -> Literal["counter", "gauge", "histogram"]:
        """What Prometheus calls it."""
        raise NotImplementedError

    @property
    def series(self) -> frozenset[str]:
        """The names that a query may use."""
        return frozenset({self.name})


class CounterMetric(Metric):
    """Counts up since the start of the process."""

    __slots__ = ()
    kind = "counter"

    def on(self, registry: CollectorRegistry) -> Counter:
        """A counter to be increased."""
        return Counter(self.name, self.help, self.labels, registry=registry)

    def read_by(self, registry: CollectorRegistry, read: Callable[[], float]) -> None:
        """A counter that is kept elsewhere, and read when it is asked for."""
        registry.register(_Read(self, read))


class GaugeMetric(Metric):
    """A value of this moment."""

    __slots__ = ()
    kind = "gauge"

    def on(self, registry: CollectorRegistry) -> Gauge:
        """A gauge to be set."""
        return Gauge(self.name, self.help, self.labels, registry=registry)

    def read_by(self, registry: CollectorRegistry, read: Callable[[], float]) -> None:
        """A value that is kept elsewhere, and read when it is asked for."""
        self.on(registry).set_function(read)


@dataclass(frozen=True, slots=True)
class HistogramMetric(Metric):
    """How values are distributed."""

    buckets: tuple[float, ...] = SECONDS

    @property
    def kind(self) -> Literal["histogram"]:
        return "histogram"

    @property
    def series(self) -> frozenset[str]:
        return frozenset(f"{self.name}_{part}" for part in ("bucket", "sum", "count"))

    def on(self, registry: CollectorRegistry) -> Histogram:
        """A histogram to be observed."""
        return Histogram(self.name, self.help, self.labels, buckets=self.buckets, registry=registry)


class _Read(Collector):
    """prometheus_client's counters cannot be read from elsewhere; a collector can."""

    def __init__(self, metric: Metric, read: Callable[[], float]) -> None:
        self._metric, self._read = metric, read

    def collect(self) -> Iterator[CounterMetricFamily]:
        yield CounterMetricFamily(self._metric.name, self._metric.help, self._read())


# Every service.
BUILD_INFO = GaugeMetric(
    "diptych_build_info", "1; the labels say which service and version this is.", ("service", "version")
)
RPC_RUNNING = GaugeMetric("diptych_rpc_requests_running", "Calls that this process is answering.", ("method",))
RPC_DURATION = HistogramMetric(
    "diptych_rpc_duration_seconds", "From a call's arrival to its end, by the status it ended with.", ("method", "code")
)
RPC_FAILURES = CounterMetric(
    "diptych_rpc_failures_total",
    "Calls that failed or were rejected, by the reason in their ErrorInfo.",
    ("method", "reason"),
)
CACHE_LOOKUPS = CounterMetric(
    "diptych_cache_lookups_total",
    "Values looked for: level manifest, slice, media or header; source redis or local; result hit or miss.",
    ("level", "source", "result"),
)
CACHE_DURATION = HistogramMetric(
    "diptych_cache_operation_duration_seconds",
    "What callers wait for the store: get, contains, put, delete. Redis latency is source redis.",
    ("source", "operation"),
)
CACHE_ERRORS = CounterMetric(
    "diptych_cache_errors_total",
    "Operations that the store did not do: failed, or down (known to be out, and not asked).",
    ("source", "operation", "reason"),
)
CACHE_BYTES = CounterMetric(
    "diptych_cache_bytes_total",
    "Bytes of values, as they are stored: direction read, written, or refused (over a tenant's quota).",
    ("source", "direction"),
)

# The gateway: what clients see. BatchChat counts each conversation.
GATEWAY_RUNNING = GaugeMetric("diptych_gateway_requests_running", "Conversations that are being answered.")
GATEWAY_FIRST_TOKEN = HistogramMetric(
    "diptych_gateway_time_to_first_token_seconds", "From a conversation's arrival to its first text."
)
GATEWAY_LATENCY = HistogramMetric(
    "diptych_gateway_e2e_request_latency_seconds", "From a conversation's arrival to `finished`; of those that finish."
)
GATEWAY_PROMPT_TOKENS = CounterMetric(
    "diptych_gateway_prompt_tokens_total", "Tokens of prompts, media tokens included."
)
GATEWAY_MEDIA_TOKENS = CounterMetric("diptych_gateway_media_tokens_total", "Tokens that stand for pictures and videos.")
GATEWAY_GENERATION_TOKENS = CounterMetric("diptych_gateway_generation_tokens_total", "Tokens generated for clients.")
GATEWAY_MEDIA_ITEMS = CounterMetric(
    "diptych_gateway_media_items_total",
    "Pictures and videos of finished conversations: cache hit, partial, miss or unknown (not looked for).",
    ("cache",),
)
GATEWAY_MEDIA_BYTES = CounterMetric(
    "diptych_gateway_media_bytes_total",
    "Bytes of media as they came in: source data (bytes and data: URIs), file, http or digest.",
    ("source",),
)
GATEWAY_FETCH = HistogramMetric(
    "diptych_gateway_fetch_duration_seconds", "Fetches of http: and https: URIs: result ok or failed.", ("result",)
)
GATEWAY_QUOTA_REFUSALS = CounterMetric(
    "diptych_gateway_quota_refusals_total",
    "Calls and conversations over their tenant's quota: calls, cost, requests per minute or cost per minute.",
    ("quota",),
)

# The encoder.
ENCODER_PATCHES_ADMITTED = GaugeMetric(
    "diptych_encoder_queued_patches", "Patches of all items from their header to their answer: the queue by its cost."
)
ENCODER_WAITING = GaugeMetric("diptych_encoder_slices_waiting", "Slices that wait for a batch.")
ENCODER_QUEUE_TIME = HistogramMetric(
    "diptych_encoder_queue_time_seconds", "From a slice's arrival to its batch's start."
)
ENCODER_ENCODE_TIME = HistogramMetric(
    "diptych_encoder_encode_time_seconds", "A batch's time in the vision transformer."
)
ENCODER_BATCH_PATCHES = HistogramMetric("diptych_encoder_batch_patches", "Patches of a batch: its cost.", (), PATCHES)

# The decoder.
DECODER_RUNNING = GaugeMetric("diptych_decoder_requests_running", "Sequences in the batch.")
DECODER_WAITING = GaugeMetric("diptych_decoder_requests_waiting", "Sequences that wait for a place in the batch.")
DECODER_BLOCKS_USED = GaugeMetric("diptych_decoder_kv_blocks_used", "Blocks of the KV cache that sequences hold.")
DECODER_BLOCKS = GaugeMetric("diptych_decoder_kv_blocks", "Blocks of the KV cache.")
DECODER_PREEMPTIONS = CounterMetric(
    "diptych_decoder_preemptions_total", "Sequences put back to be computed again, for want of blocks."
)
DECODER_QUEUE_TIME = HistogramMetric(
    "diptych_decoder_queue_time_seconds", "From a prompt's arrival to its first chunk; waiting for embeddings included."
)
DECODER_FIRST_TOKEN = HistogramMetric(
    "diptych_decoder_time_to_first_token_seconds", "From a prompt's arrival to its first token."
)
DECODER_INTER_TOKEN = HistogramMetric(
    "diptych_decoder_inter_token_latency_seconds", "Between one token of a choice and its next."
)
DECODER_STEP = HistogramMetric("diptych_decoder_step_duration_seconds", "One step of the engine's loop.")
DECODER_PROMPT_TOKENS = CounterMetric("diptych_decoder_prompt_tokens_total", "Tokens of prompts that have begun.")
DECODER_PREFIX_HITS = CounterMetric(
    "diptych_decoder_prefix_cache_hit_tokens_total", "Of those, tokens whose keys and values were in the prefix cache."
)
DECODER_GENERATION_TOKENS = CounterMetric("diptych_decoder_generation_tokens_total", "Tokens sampled.")

CATALOGUE: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
