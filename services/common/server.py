"""The life of a gRPC server: bind, announce, serve, drain."""

import asyncio
import ipaddress
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn, Self

import grpc
import structlog
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from services.common.background import beside
from services.common.health import DrainingHealth
from services.common.interceptors import ErrorInterceptor
from services.common.settings import variable_name
from services.common.tls import TlsSettings, server_credentials

READY_FILE_VARIABLE = "DIPTYCH_READY_FILE"
MAX_HEALTH_REQUEST_BYTES = 4096  # a service's name
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

log = structlog.get_logger()


class ServerSettings(TlsSettings):
    """How a service listens and stops. A service's own settings inherit this under their prefix."""

    model_config = SettingsConfigDict(
        frozen=True, env_prefix="DIPTYCH_", validate_by_name=True, extra="forbid", env_ignore_empty=True
    )

    listen: str = Field(default="127.0.0.1:0", description="Address to listen on, host:port; port 0 takes a free one.")
    health_listen: str | None = Field(
        default=None,
        description="A second address, host:port, in the clear, for health alone: for probes that speak no TLS.",
    )
    drain_notice_s: float = Field(
        default=0.5,
        ge=0,
        description="Seconds from NOT_SERVING until calls are refused: the clients' time to go elsewhere.",
    )
    drain_grace_s: float = Field(default=30, ge=0, description="Seconds that running calls get to finish.")
    slow_reader_timeout_s: float = Field(
        default=10, gt=0, description="Seconds after which who does not read is cut off."
    )
    max_message_bytes: int = Field(default=4 << 20, ge=1 << 20, description="Largest message that is accepted.")
    allow_insecure: bool = Field(
        default=False,
        validation_alias="DIPTYCH_ALLOW_INSECURE",
        description="Listen to other machines without TLS, or without knowing who calls.",
    )
    metrics_listen: str | None = Field(
        default=None,
        pattern=r":\d{1,5}$",
        validation_alias="DIPTYCH_METRICS_LISTEN",
        description="Address for Prometheus, host:port, over HTTPS where there is a certificate.",
    )

    @property
    def knows_callers(self) -> bool:
        """Whether every caller has to say who it is, and to prove it."""
        return self.tls_client_ca is not None

    @property
    def connection_age_s(self) -> tuple[float, float] | None:
        """Seconds after which callers are asked to connect anew, and then for calls under way; None for never."""
        return None

    @property
    def auth_variables(self) -> str:
        """What can be set so that it does."""
        return variable_name(type(self), "tls_client_ca")

    @model_validator(mode="after")
    def _guarded_beyond_this_machine(self) -> Self:
        guarded = self.tls_cert is not None and self.knows_callers
        if not (guarded or self.allow_insecure or is_local(self.listen)):
            raise ValueError(
                f"{variable_name(type(self), 'listen')}: {self.listen} can be reached from other machines, which needs"
                f" DIPTYCH_TLS_CERT, DIPTYCH_TLS_KEY and {self.auth_variables}; or else DIPTYCH_ALLOW_INSECURE=true"
            )
        return self

    @model_validator(mode="after")
    def _metrics_in_the_clear_on_this_machine(self) -> Self:
        """Who scrapes need not be known: there is nothing personal in metrics."""
        closed = self.metrics_listen is None or self.tls_cert is not None or self.allow_insecure
        if not (closed or is_local(str(self.metrics_listen))):
            raise ValueError(
                f"DIPTYCH_METRICS_LISTEN: {self.metrics_listen} can be reached from other machines, which needs"
                " DIPTYCH_TLS_CERT and DIPTYCH_TLS_KEY; or else DIPTYCH_ALLOW_INSECURE=true"
            )
        return self


def is_local(listen: str) -> bool:
    """Whether only this machine can call `listen`. A name other than localhost may be anywhere."""
    if listen.startswith(("unix:", "unix-abstract:")):
        return True
    host = listen.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def serve(  # noqa: PLR0913 -- what a server is given from outside
    settings: ServerSettings,
    register: Callable[[grpc.aio.Server], None],
    service_names: Sequence[str],
    *,
    stop: asyncio.Event,
    on_ready: Callable[[int], None] | None = None,
    guards: Sequence[grpc.aio.ServerInterceptor] = (),
    readiness: AsyncIterator[bool] | None = None,
) -> None:
    """Serve until `stop` is set, then drain: NOT_SERVING, then no new calls, and running ones finish within the grace.

    `register` adds the servicers; health and reflection are added here for `service_names`. `guards` measure the calls
    and decide who may. `readiness` says, whenever it changes, whether `service_names` are SERVING; without it they
    always are, as the process itself is. The bound port goes to `on_ready`, and the address to the file that
    DIPTYCH_READY_FILE names. OSError when the address cannot be bound or a certificate cannot be read.
    """
    options = [*server_options(settings.max_message_bytes), *_age_options(settings.connection_age_s)]
    errors = ErrorInterceptor(settings.slow_reader_timeout_s)
    server = grpc.aio.server(interceptors=[errors, *guards], options=options)
    register(server)
    health_servicer = DrainingHealth()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    await health_servicer.set_all(service_names, is_serving=readiness is None)
    reflection.enable_server_reflection([*service_names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    address, port = _bind(server, settings, "listen", server_credentials(settings))
    async with _plain_health(settings, health_servicer), _following(readiness, health_servicer, service_names):
        await server.start()
        try:
            _announce(address, port, on_ready)
            await stop.wait()
            log.info("draining", address=address)
        finally:
            await health_servicer.enter_graceful_shutdown()
            await asyncio.sleep(settings.drain_notice_s)  # a call that meets the stop itself would fail as CANCELLED
            await server.stop(settings.drain_grace_s)
    log.info("stopped", address=address)


@asynccontextmanager
async def _following(
    readiness: AsyncIterator[bool] | None, servicer: DrainingHealth, service_names: Sequence[str]
) -> AsyncIterator[None]:
    """Let the health of the services be what `readiness` says."""
    if readiness is None:
        yield
        return

    async def follow() -> None:
        async for is_serving in readiness:
            log.info("readiness changed", code="SERVING" if is_serving else "NOT_SERVING")
            await servicer.set_all(service_names, is_serving=is_serving)

    async with beside(follow()):
        yield


@asynccontextmanager
async def _plain_health(settings: ServerSettings, servicer: DrainingHealth) -> AsyncIterator[None]:
    """The same health at `settings.health_listen`, until the drain is over.

    It may be reached from other machines without TLS: it has no other service, not even reflection, and takes a message
    of a name's length, so it tells no more than the main port tells everybody.
    """
    if settings.health_listen is None:
        yield
        return
    server = grpc.aio.server(options=server_options(MAX_HEALTH_REQUEST_BYTES))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    address, _ = _bind(server, settings, "health_listen", None)
    await server.start()
    log.info("listening for health alone", address=address)
    try:
        yield
    finally:
        await server.stop(None)


def exit_on_stop_signals() -> None:
    """From now on SIGTERM and SIGINT end the process with 0 at once: who still loads has no calls to finish.

    Holds until `install_stop_signals`. What loads must do so in the main thread, where Python runs signal handlers.
    """

    def leave(*_: object) -> NoReturn:
        raise SystemExit(0)

    for number in STOP_SIGNALS:
        signal.signal(number, leave)


def install_stop_signals(loop: asyncio.AbstractEventLoop) -> asyncio.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    return stop


def server_options(max_message_bytes: int) -> list[tuple[str, int]]:
    """What every server of ours is opened with."""
    return [
        ("grpc.so_reuseport", 0),  # on by default: two servers would silently share a port
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.http2.max_ping_strikes", 0),  # pings are answered however many: who was stopped finds them all at once
    ]


def _age_options(connection_age_s: tuple[float, float] | None) -> list[tuple[str, int]]:
    """gRPC spreads the age by a tenth, so that not all callers come back at once."""
    if connection_age_s is None:
        return []
    age_s, grace_s = connection_age_s
    return [
        ("grpc.max_connection_age_ms", round(age_s * 1000)),
        ("grpc.max_connection_age_grace_ms", round(grace_s * 1000)),
    ]


def _bind(
    server: grpc.aio.Server, settings: ServerSettings, name: str, credentials: grpc.ServerCredentials | None
) -> tuple[str, int]:
    """Listen where the setting `name` says: the address, and its port. Raises OSError that names the variable."""
    listen: str = getattr(settings, name)
    host, _, _ = listen.rpartition(":")
    try:
        port = server.add_secure_port(listen, credentials) if credentials else server.add_insecure_port(listen)
    except RuntimeError as error:
        text = f"cannot listen on {listen}: the port is in use, or the address is not this machine's"
        raise OSError(f"{variable_name(type(settings), name)}: {text}") from error
    return f"{host}:{port}", port


def _announce(address: str, port: int, on_ready: Callable[[int], None] | None) -> None:
    log.info("listening", address=address)
    if on_ready is not None:
        on_ready(port)
    if path := os.environ.get(READY_FILE_VARIABLE):
        unfinished = Path(f"{path}.{os.getpid()}")
        unfinished.write_text(f"{address}\n")
        unfinished.replace(path)  # whoever waits for the file never reads half of it
