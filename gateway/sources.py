"""Where a part's bytes come from: the request itself, a URI, or media sent before."""

import asyncio
import binascii
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from services.common.errors import InvalidRequest, MediaNotFound, Violation
from services.common.keys import Owner

from .fetch import Fetcher, FetchError
from .media_store import MediaStore
from .telemetry import GatewayMetrics
from .template import MediaKind


class Source(Protocol):
    """What images, videos and frames have in common."""

    data: bytes
    uri: str
    digest: str

    def WhichOneof(self, name: str) -> str | None: ...  # noqa: N802 - protobuf's name


@dataclass(frozen=True, slots=True)
class SourceRules:
    """`file_roots`: resolved folders, none if file: is off. `fetcher`: None if http: is off."""

    max_bytes: int
    file_roots: tuple[Path, ...] = ()
    fetcher: Fetcher | None = None


class Sources:
    """Turns a source into bytes, at most `rules.max_bytes` of them."""

    def __init__(self, rules: SourceRules, store: MediaStore, metrics: GatewayMetrics) -> None:
        self._rules = rules
        self._store = store
        self._metrics = metrics

    async def read(self, field: str, source: Source, kind: MediaKind, owner: Owner) -> bytes:
        """The bytes of the item at `field`. Raises InvalidRequest, or MediaNotFound for an unknown digest."""
        which = source.WhichOneof("source")
        if which == "digest":
            data = await self._store.get(owner, source.digest)
            if data is None:
                raise MediaNotFound(f"{field}.digest")
        elif which == "uri":
            data = await self._read_uri(f"{field}.uri", source.uri, kind)
        else:
            data = source.data
        if len(data) > self._rules.max_bytes:
            raise self._too_large(f"{field}.{which}")
        if not data:
            raise refused(f"{field}.{which}", "is empty", "REQUIRED")
        self._metrics.media_came(which, source.uri, len(data))
        return data

    async def _read_uri(self, field: str, uri: str, kind: MediaKind) -> bytes:
        scheme = uri.partition(":")[0].lower()
        if scheme == "data":
            return self._read_data(field, uri, kind)
        if scheme == "file":
            return await self._read_file(field, uri)
        if scheme in ("http", "https"):
            return await self._fetch(field, uri)
        raise refused(field, "must be a data:, file: or http(s): URI", "UNSUPPORTED_SCHEME")

    def _read_data(self, field: str, uri: str, kind: MediaKind) -> bytes:
        """RFC 2397, base64 only; a media type without a subtype ("data:image;base64,") is accepted."""
        head, comma, body = uri[len("data:") :].partition(",")
        media_type, *parameters = head.lower().split(";")
        if not comma or "base64" not in (parameter.strip() for parameter in parameters):
            raise refused(field, "must be data:<type>;base64,<data>", "MALFORMED")
        other = "video" if kind == "image" else "image"
        if media_type.partition("/")[0].strip() == other:
            raise refused(field, f"says that it is a {other}, in a part that is not", "WRONG_KIND")
        if len(body) * 3 // 4 - 2 > self._rules.max_bytes:
            raise self._too_large(field)
        try:
            return binascii.a2b_base64(body, strict_mode=True)
        except ValueError as error:
            raise refused(field, "is not base64", "MALFORMED") from error

    async def _read_file(self, field: str, uri: str) -> bytes:
        if not self._rules.file_roots:
            raise refused(field, "file: URIs are not enabled", "SCHEME_DISABLED")
        try:
            parts = urlsplit(uri)
        except ValueError as error:
            raise refused(field, "is not a URI", "MALFORMED") from error
        path = unquote(parts.path)
        if parts.netloc not in ("", "localhost") or not path.startswith("/") or "\0" in path:
            raise refused(field, "must be file:///<absolute path>", "MALFORMED")
        return await asyncio.to_thread(self._read_path, field, Path(path))

    def _read_path(self, field: str, path: Path) -> bytes:
        try:
            real = path.resolve()
            root = next((root for root in self._rules.file_roots if real.is_relative_to(root)), None)
            if root is None:
                raise refused(field, "is not under a folder from which files may be read", "FILE_REFUSED")
            return self._read_below(field, root, real)
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links
            raise refused(field, "cannot be read", "FILE_UNREADABLE") from error

    def _read_below(self, field: str, root: Path, real: Path) -> bytes:
        """Open step by step without following links, so that none can be slipped in after the check."""
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            *folders, name = real.relative_to(root).parts or (".",)
            for step in folders:
                folder, parent = os.open(step, _FOLDER_FLAGS, dir_fd=folder), folder
                os.close(parent)
            file = os.open(name, _FILE_FLAGS, dir_fd=folder)
        finally:
            os.close(folder)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise refused(field, "is not a file", "FILE_REFUSED")
            with os.fdopen(file, "rb", closefd=False) as opened:
                return opened.read(self._rules.max_bytes + 1)
        finally:
            os.close(file)

    async def _fetch(self, field: str, uri: str) -> bytes:
        if self._rules.fetcher is None:
            raise refused(field, "http: and https: URIs are not enabled", "SCHEME_DISABLED")
        try:
            with self._metrics.fetching():
                return await self._rules.fetcher.fetch(uri, self._rules.max_bytes)
        except FetchError as error:
            raise refused(field, error.message, error.reason) from error

    def _too_large(self, field: str) -> InvalidRequest:
        return refused(field, f"has more than {self._rules.max_bytes} bytes", "TOO_LARGE")


_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # non-blocking: a pipe must not hold us


def refused(field: str, description: str, reason: str) -> InvalidRequest:
    """The error for one wrong field."""
    return InvalidRequest([Violation(field=field, description=description, reason=reason)])
