"""TLS: what a process shows of itself and whom it trusts, from PEM files."""

import os
import ssl
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import grpc
import structlog
from pydantic import Field, FilePath, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.common.watched_files import WatchedFiles

log = structlog.get_logger()


class TlsSettings(BaseSettings):
    """The files. The variables are the same for all services and for their clients."""

    model_config = SettingsConfigDict(frozen=True, validate_by_name=True, extra="forbid", env_ignore_empty=True)

    tls_cert: FilePath | None = Field(
        default=None,
        validation_alias="DIPTYCH_TLS_CERT",
        description="PEM file: the certificate, and its chain, shown to callers and to the services that are called.",
    )
    tls_key: FilePath | None = Field(
        default=None, validation_alias="DIPTYCH_TLS_KEY", description="PEM file: the certificate's private key."
    )
    tls_client_ca: FilePath | None = Field(
        default=None,
        validation_alias="DIPTYCH_TLS_CLIENT_CA",
        description="PEM file: who signs the certificates that callers must show; unset, none is asked for.",
    )
    tls_ca: FilePath | None = Field(
        default=None,
        validation_alias="DIPTYCH_TLS_CA",
        description="PEM file: who signs the certificates of services that are called; unset, calls are in the clear.",
    )

    @model_validator(mode="after")
    def _certificate_is_whole(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("DIPTYCH_TLS_CERT and DIPTYCH_TLS_KEY must be set together")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("DIPTYCH_TLS_CLIENT_CA needs DIPTYCH_TLS_CERT and DIPTYCH_TLS_KEY")
        return self


def server_credentials(tls: TlsSettings) -> grpc.ServerCredentials | None:
    """What a server listens with, None for plain text. Changed files hold from the next connection on.

    Raises OSError for files that cannot be used.
    """
    if tls.tls_cert is None or tls.tls_key is None:
        return None
    files = _ServerFiles(tls.tls_cert, tls.tls_key, tls.tls_client_ca)
    fetch: Any = files.read_changed  # its stubs leave out the None for "as it was"
    return grpc.dynamic_ssl_server_credentials(
        files.read(), fetch, require_client_authentication=tls.tls_client_ca is not None
    )


def channel_credentials(tls: TlsSettings) -> grpc.ChannelCredentials | None:
    """What a client connects with, None for plain text. Read once: a channel keeps its files for life."""
    if tls.tls_ca is None:
        return None
    key, certificate = (path.read_bytes() if path else None for path in (tls.tls_key, tls.tls_cert))
    return grpc.ssl_channel_credentials(tls.tls_ca.read_bytes(), key, certificate)


def watched_credentials(tls: TlsSettings) -> WatchedFiles[grpc.ChannelCredentials | None]:
    """The same for a client that lives on: made anew when the files have changed, for it to open its channels anew."""
    paths = [path for path in (tls.tls_ca, tls.tls_cert, tls.tls_key) if path]
    return WatchedFiles(paths, partial(_usable_credentials, tls), "certificates")


def _usable_credentials(tls: TlsSettings) -> grpc.ChannelCredentials | None:
    if tls.tls_ca is not None:
        _require_usable(tls.tls_ca, "DIPTYCH_TLS_CA", tls.tls_cert, tls.tls_key)
    return channel_credentials(tls)


def _require_usable(ca: Path | None, ca_variable: str, certificate: Path | None, key: Path | None) -> None:
    """Raises OSError for files that are no PEM or no pair; gRPC would fail later, and not say of what."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        if ca is not None:
            context.load_verify_locations(ca)
        if certificate is not None:
            context.load_cert_chain(certificate, key, password="")  # or it would ask the terminal for one
    except ssl.SSLError as error:
        names = f"{ca_variable}, DIPTYCH_TLS_CERT or DIPTYCH_TLS_KEY"
        raise OSError(f"{names}: {error.reason or 'cannot be used'}") from error


def follow_files(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Let a context that is listened with show what the files hold at each new connection, not what they once held."""

    def read() -> ssl.SSLContext:
        fresh = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        fresh.load_cert_chain(certificate, key, password="")
        return fresh

    watched = WatchedFiles([certificate, key], read, "certificate of the metrics")

    def choose(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = watched.read()

    context.sni_callback = choose  # asked at every handshake, whether a client names a server or not


class _ServerFiles:
    """A server's files, read again when one of them has changed. gRPC asks at every handshake."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._stamps = self._look()

    def read(self) -> grpc.ServerCertificateConfiguration:
        """What the files hold. Raises OSError when it cannot be used."""
        _require_usable(self._client_ca, "DIPTYCH_TLS_CLIENT_CA", self._certificate, self._key)
        pair = (self._key.read_bytes(), self._certificate.read_bytes())
        client_ca = self._client_ca.read_bytes() if self._client_ca else None
        return grpc.ssl_server_certificate_configuration([pair], client_ca)

    def read_changed(self) -> grpc.ServerCertificateConfiguration | None:
        """None while all is as it was; also while files cannot be used, so that the last good ones stay in use."""
        try:
            stamps = self._look()
            if stamps == self._stamps:
                return None
            configuration = self.read()
        except OSError as error:
            log.warning("certificates not read", reason=type(error).__name__)
            return None
        self._stamps = stamps
        log.info("certificates read again")
        return configuration

    def _look(self) -> Sequence[tuple[int, int, int]]:
        paths = [path for path in (self._certificate, self._key, self._client_ca) if path]
        return [(stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in map(os.stat, paths)]
