"""What the encoder tells of its queue and its batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from services.common.telemetry import catalogue
from services.common.telemetry.spans import current_span, wall_ns


@dataclass(frozen=True, slots=True)
class BatchTimes:
    """When a slice came, and when its batch began and ended, on the monotonic clock in seconds."""

    submitted: float
    started: float
    ended: float

    @property
    def queue_ms(self) -> float:
        """How long the slice waited for its batch."""
        return (self.started - self.submitted) * 1000


class EncoderMetrics:
    """The encoder's own. Observed once a batch and once a slice, in the event loop's thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.queue_time = catalogue.ENCODER_QUEUE_TIME.on(registry)
        self.encode_time = catalogue.ENCODER_ENCODE_TIME.on(registry)
        self.batch_patches = catalogue.ENCODER_BATCH_PATCHES.on(registry)

    def watch(self, num_patches: Callable[[], int], num_waiting: Callable[[], int]) -> None:
        """Where to read the queue when it is asked for."""
        catalogue.ENCODER_PATCHES_ADMITTED.read_by(self._registry, num_patches)
        catalogue.ENCODER_WAITING.read_by(self._registry, num_waiting)


def record_batches(times: Sequence[BatchTimes]) -> None:
    """Two spans below the current one for all slices of a window: their wait, and the batches that they were in."""
    if not times:
        return
    submitted, started = min(time.submitted for time in times), min(time.started for time in times)
    for name, start, end in (
        ("encode queue", submitted, started),
        ("encode", started, max(time.ended for time in times)),
    ):
        current_span().child(name, start_ns=wall_ns(start)).end(end_ns=wall_ns(end))
