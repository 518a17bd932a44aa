"""The four processes of one machine: started in the order of their needs, stopped in the order of the requests."""

import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from cli.children import Child
from cli.local_redis import LocalRedis

DRAIN_ORDER = ("gateway", "decoder", "encoder")
DRAIN_TIMEOUT_S = 35.0  # a service gives its calls 30 s
START_TIMEOUT_S = 600.0  # a large checkpoint on a slow disk
POLL_S = 0.05
ANYWHERE = "127.0.0.1:0"


class ChildDied(Exception):  # noqa: N818 (an event, told as it happened)
    """A service ended by itself."""

    def __init__(self, child: Child) -> None:
        super().__init__(f"the {child.name} ended with exit code {child.exit_code}; the end of its log:")
        self.log_tail = child.log_tail()


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What to run."""

    model: str
    cache_url: str | None = None  # of a cache that runs already
    redis: bool = True  # start one when no cache is given
    dtype: str = "auto"
    device: str = "auto"
    listen: str = "127.0.0.1:0"
    logs: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


class Stack:
    """Redis, encoder, decoder and gateway. A context manager: leaving it drains and stops all of them."""

    def __init__(self, options: StackOptions) -> None:
        self.options = options
        self.children: dict[str, Child] = {}
        self.redis: LocalRedis | None = None
        self._resources = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """The gateway's."""
        address = self.children["gateway"].address
        if address is None:
            raise RuntimeError("the gateway does not listen yet")
        return address

    @property
    def metrics_addresses(self) -> list[str]:
        """Where the services' metrics are, in the order of a request."""
        found = [self.children[name].metrics_address for name in ("gateway", "encoder", "decoder")]
        return [address for address in found if address is not None]

    def start(self, on_wait: Callable[[], None] = lambda: None) -> None:
        """Starts everything and waits until all of it listens. `on_wait` is called meanwhile and may raise to give up.

        Raises ChildDied when a service ends, TimeoutError when one never listens.
        """
        folder = self._folder()
        cache_url = self._start_cache()
        common = {
            "DIPTYCH_MODEL": self.options.model,
            "DIPTYCH_CACHE_URL": cache_url,
            "DIPTYCH_DTYPE": self.options.dtype,
            "DIPTYCH_DEVICE": self.options.device,
            "DIPTYCH_METRICS_LISTEN": ANYWHERE,
            **self.options.environment,
        }
        for name in ("encoder", "decoder"):
            listen = {f"DIPTYCH_{name.upper()}_LISTEN": ANYWHERE}
            self.children[name] = Child(name, f"services.{name}", {**common, **listen}, folder)
        addresses = {f"DIPTYCH_GATEWAY_{name.upper()}": self._wait(name, on_wait) for name in ("encoder", "decoder")}
        listen = {"DIPTYCH_GATEWAY_LISTEN": self.options.listen}
        self.children["gateway"] = Child("gateway", "gateway", {**common, **listen, **addresses}, folder)
        self._wait("gateway", on_wait)

    def check(self) -> None:
        """Raises ChildDied when a service has ended."""
        for child in self.children.values():
            if child.exit_code is not None:
                raise ChildDied(child)

    def stop(self) -> dict[str, int]:
        """Drains and stops everything that runs; returns the services' exit codes."""
        codes = {name: self.children[name].stop(DRAIN_TIMEOUT_S) for name in DRAIN_ORDER if name in self.children}
        self._resources.close()
        return codes

    def _folder(self) -> Path:
        if self.options.logs is not None:
            self.options.logs.mkdir(parents=True, exist_ok=True)
            return self.options.logs
        return Path(self._resources.enter_context(tempfile.TemporaryDirectory(prefix="diptych-")))

    def _start_cache(self) -> str:
        if self.options.cache_url is not None:
            return self.options.cache_url
        if not self.options.redis:
            return "memory://"
        self.redis = self._resources.enter_context(LocalRedis())
        return self.redis.url

    def _wait(self, name: str, on_wait: Callable[[], None]) -> str:
        deadline = time.monotonic() + START_TIMEOUT_S
        while (address := self.children[name].address) is None:
            self.check()
            on_wait()
            if time.monotonic() > deadline:
                raise TimeoutError(f"the {name} does not listen after {START_TIMEOUT_S:.0f} s")
            time.sleep(POLL_S)
        return address
