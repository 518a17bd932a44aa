"""What a service's metrics page says, and what has changed between two readings of it."""

import math
import ssl
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import monotonic, time

from prometheus_client.parser import text_string_to_metric_families

from cli.client import ClientSettings
from services.common.settings import load
from services.common.telemetry import catalogue
from services.common.telemetry.catalogue import HistogramMetric, Metric

TIMEOUT_S = 2.0

Labels = frozenset[tuple[str, str]]
Values = Mapping[tuple[str, Labels], float]


@dataclass(frozen=True, slots=True)
class Reading:
    """One page: every series' value. `at` is on the monotonic clock."""

    at: float
    values: Values

    @property
    def service(self) -> str:
        """gateway, encoder or decoder; ? where the page is not one of theirs."""
        infos = (dict(labels) for name, labels in self.values if name == catalogue.BUILD_INFO.name)
        return next((labels["service"] for labels in infos), "?")

    @property
    def started_at(self) -> float:
        """When its process started, in seconds since the epoch."""
        return self.values.get(("process_start_time_seconds", frozenset()), 0.0)


def read(address: str) -> Reading | None:
    """The page at `address`, host:port or a URL's start; None when nobody answers. DIPTYCH_TLS_CA holds for https."""
    base = address if "://" in address else f"http://{address}"
    try:
        with urllib.request.urlopen(f"{base}/metrics", timeout=TIMEOUT_S, context=_trust(base)) as page:  # noqa: S310
            return Reading(monotonic(), parse(page.read().decode()))
    except (OSError, ValueError):
        return None


def parse(text: str) -> Values:
    """Every series of a page."""
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}


def _trust(base: str) -> ssl.SSLContext | None:
    if not base.startswith("https://"):
        return None
    authority = load(ClientSettings).tls_ca
    return ssl.create_default_context(cafile=None if authority is None else str(authority))


@dataclass(frozen=True, slots=True)
class Change:
    """From one reading to a later one of the same process; from its start where there is no earlier one."""

    before: Reading | None
    after: Reading

    @property
    def seconds(self) -> float:
        """The time between."""
        return max(time() - self.after.started_at if self.before is None else self.after.at - self.before.at, 1e-3)

    def now(self, metric: Metric) -> float:
        """A gauge's value, over all its labels."""
        return sum(value for (name, _), value in self.after.values.items() if name == metric.name)

    def grown(self, name: str, **labels: str) -> float:
        """How much a series has grown, over all labels that are not named."""
        wanted = frozenset(labels.items())
        series = [key for key in self.after.values if key[0] == name and wanted <= key[1]]
        return sum(self.after.values[key] - self._before(key) for key in series)

    def rate(self, metric: Metric, **labels: str) -> float:
        """Growth a second."""
        return self.grown(metric.name, **labels) / self.seconds

    def quantile(self, quantile: float, metric: HistogramMetric, **labels: str) -> float | None:
        """Of what was observed meanwhile; None where nothing was. Linear within a bucket, as PromQL has it."""
        bounds = [*metric.buckets, math.inf]
        counts = [self.grown(f"{metric.name}_bucket", le=_bound(bound), **labels) for bound in bounds]
        return histogram_quantile(quantile, bounds, counts)

    def _before(self, key: tuple[str, Labels]) -> float:
        return 0.0 if self.before is None else self.before.values.get(key, 0.0)


def histogram_quantile(quantile: float, bounds: Sequence[float], counts: Sequence[float]) -> float | None:
    """The quantile of cumulative `counts` up to each of `bounds`, the last of which is infinite."""
    rank = quantile * counts[-1]
    if not counts[-1]:
        return None
    index = next(index for index, count in enumerate(counts) if count >= rank)
    if math.isinf(bounds[index]):
        return bounds[index - 1]
    low, before = (bounds[index - 1], counts[index - 1]) if index else (0.0, 0.0)
    return low + (bounds[index] - low) * (rank - before) / (counts[index] - before)


def share(part: float, whole: float) -> float | None:
    """A part of a whole; None of nothing."""
    return part / whole if whole else None


def _bound(bound: float) -> str:
    return "+Inf" if math.isinf(bound) else str(bound)
