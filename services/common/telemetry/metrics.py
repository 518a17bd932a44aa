"""The metrics that every service has, on the registry of its process."""

from importlib.metadata import version

from prometheus_client import CollectorRegistry, ProcessCollector

from services.common.telemetry import catalogue

MAX_REASONS = 64  # of all that a process ever counts; reasons are constants, and this holds whatever becomes of that


class RpcMetrics:
    """Calls to this process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.running = catalogue.RPC_RUNNING.on(registry)
        self._duration = catalogue.RPC_DURATION.on(registry)
        self._failures = catalogue.RPC_FAILURES.on(registry)
        self._reasons: set[str] = set()

    def ended(self, method: str, code: str, seconds: float) -> None:
        """A call is over."""
        self._duration.labels(method, code).observe(seconds)

    def failed(self, method: str, reason: str) -> None:
        """It failed. Beyond MAX_REASONS different ones, a reason counts as OTHER."""
        if len(self._reasons) < MAX_REASONS:
            self._reasons.add(reason)
        self._failures.labels(method, reason if reason in self._reasons else "OTHER").inc()


class CacheMetrics:
    """Stores of cached values, for `services/common/cache/metered.py`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.lookups = catalogue.CACHE_LOOKUPS.on(registry)
        self.duration = catalogue.CACHE_DURATION.on(registry)
        self.errors = catalogue.CACHE_ERRORS.on(registry)
        self.bytes = catalogue.CACHE_BYTES.on(registry)


def new_registry(service: str) -> CollectorRegistry:
    """A registry of one process, with what the process itself can tell: memory, CPU, descriptors, its version."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    catalogue.BUILD_INFO.on(registry).labels(service, version("diptych")).set(1)
    return registry
