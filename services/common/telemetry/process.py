"""The telemetry of one process: made at its start, handed to whoever has something to tell."""

import asyncio
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NoReturn
from wsgiref.simple_server import WSGIServer

import grpc
import structlog
from prometheus_client import CollectorRegistry, start_http_server

from services.common.telemetry.export import NO_TRACING, Tracing, TracingError, open_tracing
from services.common.telemetry.interceptor import TelemetryInterceptor
from services.common.telemetry.metrics import CacheMetrics, RpcMetrics, new_registry
from services.common.tls import TlsSettings, follow_files

METRICS_EVENT = "metrics served"

log = structlog.get_logger()


class Telemetry:
    """A registry of metrics and a way to start traces. Nothing is served or sent before `served`."""

    def __init__(self, service: str, tracing: Tracing = NO_TRACING) -> None:
        self.registry: CollectorRegistry = new_registry(service)
        self.cache = CacheMetrics(self.registry)
        self._rpc = RpcMetrics(self.registry)
        self._tracing = tracing

    def interceptor(self) -> grpc.aio.ServerInterceptor:
        """What measures a server's calls."""
        return TelemetryInterceptor(self._rpc, self._tracing.start)

    @asynccontextmanager
    async def served(self, listen: str | None, tls: TlsSettings) -> AsyncIterator[None]:
        """Metrics at http(s)://`listen`/metrics, if there is one; at the end the last spans are sent.

        Exits with 2 when the address cannot be bound or a certificate cannot be read.
        """
        server = self._listen(listen, tls) if listen else None
        try:
            yield
        finally:
            if server is not None:
                await asyncio.to_thread(server.shutdown)
                server.server_close()
            await asyncio.to_thread(self._tracing.close)

    def _listen(self, listen: str, tls: TlsSettings) -> WSGIServer:
        host, _, port = listen.rpartition(":")
        cert, key = (str(path) if path else None for path in (tls.tls_cert, tls.tls_key))
        try:
            server, _ = start_http_server(int(port), host.strip("[]"), self.registry, certfile=cert, keyfile=key)
            if isinstance(server.socket, ssl.SSLSocket) and tls.tls_cert and tls.tls_key:
                follow_files(server.socket.context, tls.tls_cert, tls.tls_key)
        except OSError as error:
            _refuse(f"DIPTYCH_METRICS_LISTEN: cannot listen on {listen}: {error.strerror}")
        log.info(METRICS_EVENT, address=f"{host}:{server.server_port}")
        return server


def open_telemetry(service: str) -> Telemetry:
    """A service's, traces as the environment says. Exits with 2 when they cannot be had."""
    try:
        return Telemetry(service, open_tracing(service))
    except TracingError as error:
        _refuse(str(error))


def _refuse(problem: str) -> NoReturn:
    print(problem, file=sys.stderr)
    raise SystemExit(2)
