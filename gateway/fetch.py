"""The only way out of the gateway to addresses that a client names.

A host is resolved once, every address it has is checked, and the address that was checked is the one connected to, with
the host's name in `Host` and in TLS; again at each redirect. Limits hold on bytes, time and hops. HTTP/1.1 (RFC 9112),
`identity` encoding only, no cookies, no credentials, no proxies.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolver = Callable[[str, int], Awaitable[Sequence[str]]]

_MAX_HEAD_BYTES = 32 << 10
_PIECE_BYTES = 64 << 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_COMPATIBLE = ipaddress.IPv6Network("::/96")
_METADATA = frozenset({ipaddress.ip_address("168.63.129.16"), ipaddress.ip_address("fd00:ec2::254")})


class FetchError(Exception):
    """A URL cannot or must not be fetched. `reason` is UPPER_SNAKE; the message tells nothing of the network."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class FetchRules:
    """`hosts`: the only ones, any if empty. `networks`: allowed though not public. `timeout_s` is for all hops."""

    hosts: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()
    timeout_s: float = 10.0
    max_redirects: int = 3


async def resolve(host: str, port: int) -> list[str]:
    """Every address of a host, as the system's resolver spells them."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise FetchError("FETCH_FAILED", "the host cannot be resolved") from error
    return [str(entry[4][0]) for entry in found]


class Fetcher:
    """Fetches media under `rules`. The resolver and the TLS context are passed in for tests."""

    def __init__(self, rules: FetchRules, *, resolver: Resolver = resolve, tls: ssl.SSLContext | None = None) -> None:
        self._rules = rules
        self._resolver = resolver
        self._tls = tls or ssl.create_default_context()

    async def fetch(self, url: str, max_bytes: int) -> bytes:
        """The body behind an http or https URL. Raises FetchError."""
        try:
            async with asyncio.timeout(self._rules.timeout_s):
                return await self._follow(url, max_bytes)
        except TimeoutError as error:
            raise FetchError("FETCH_TIMEOUT", f"took more than {self._rules.timeout_s:g} seconds") from error
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            raise FetchError("FETCH_FAILED", "the server cannot be reached, or its answer is broken") from error

    async def _follow(self, url: str, max_bytes: int) -> bytes:
        for _ in range(self._rules.max_redirects + 1):
            answer = await self._get(url, max_bytes)
            if isinstance(answer, bytes):
                return answer
            url = urljoin(url, answer.location)
        raise FetchError("TOO_MANY_REDIRECTS", f"is redirected more than {self._rules.max_redirects} times")

    async def _get(self, url: str, max_bytes: int) -> "bytes | _Redirect":
        parts = _split_url(url)
        async with self._connection(parts) as (reader, writer):
            writer.write(_request(parts))
            await writer.drain()
            status, headers = await _read_head(reader)
            if status in _REDIRECTS and "location" in headers:
                return _Redirect(headers["location"])
            if status != 200:
                raise FetchError("FETCH_FAILED", f"the server answered with status {status}")
            if headers.get("content-encoding", "identity").lower() != "identity":
                raise FetchError("FETCH_FAILED", "the server answered with an encoding that was not asked for")
            return await _read_body(reader, headers, max_bytes)

    @asynccontextmanager
    async def _connection(self, parts: SplitResult) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        host, port = parts.hostname or "", _port(parts)
        address = await self._checked_address(host, port)
        secure = parts.scheme == "https"
        reader, writer = await asyncio.open_connection(
            str(address),
            port,
            limit=_MAX_HEAD_BYTES,
            ssl=self._tls if secure else None,
            server_hostname=host if secure else None,
        )
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    async def _checked_address(self, host: str, port: int) -> Address:
        if self._rules.hosts and host not in self._rules.hosts:
            raise FetchError("ADDRESS_REFUSED", "the host is not one that may be fetched from")
        addresses = [ipaddress.ip_address(text.partition("%")[0]) for text in await self._resolver(host, port)]
        if not addresses or not all(self._is_allowed(address) for address in addresses):
            raise FetchError("ADDRESS_REFUSED", "the host's address may not be fetched from")
        return addresses[0]

    def _is_allowed(self, address: Address) -> bool:
        if any(address in network for network in self._rules.networks):
            return True
        return is_public(address)


def is_public(address: Address) -> bool:
    """Whether an address, in every spelling that hides another one, is on the open internet."""
    if address in _METADATA:
        return False
    if isinstance(address, ipaddress.IPv6Address) and (hidden := _hidden(address)) is not None:
        return is_public(hidden)
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _hidden(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address inside a mapped, compatible, NAT64, 6to4 or Teredo one."""
    if address in _NAT64 or address in _COMPATIBLE:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.teredo is not None:
        return address.teredo[1]
    return address.ipv4_mapped or address.sixtofour


@dataclass(frozen=True, slots=True)
class _Redirect:
    location: str


def _split_url(url: str) -> SplitResult:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise FetchError("UNSUPPORTED_SCHEME", "leads to a scheme other than http and https")
    if not parts.hostname or parts.username is not None or parts.password is not None:
        raise FetchError("MALFORMED", "must have a host and no credentials")
    target = parts.path + parts.query + parts.netloc
    if not target.isascii() or any(character <= " " or character == "\x7f" for character in target):
        raise FetchError("MALFORMED", "has characters that must be percent-encoded")
    return parts


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


def _request(parts: SplitResult) -> bytes:
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [
        f"GET {target} HTTP/1.1",
        f"Host: {parts.netloc}",
        "User-Agent: diptych",
        "Accept: image/*, video/*, application/octet-stream",
        "Accept-Encoding: identity",
        "Connection: close",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Status and headers, names in lower case. ValueError when they are broken."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip("\r\n").split("\r\n")
    version, status, *_ = first.split(" ", 2)
    if not version.startswith("HTTP/1."):
        raise ValueError("not HTTP/1")
    pairs = (line.partition(":") for line in lines)
    return int(status), {name.strip().lower(): value.strip() for name, _, value in pairs}


async def _read_body(reader: asyncio.StreamReader, headers: dict[str, str], max_bytes: int) -> bytes:
    if "transfer-encoding" in headers:
        if headers["transfer-encoding"].lower() != "chunked":
            raise ValueError("unknown transfer encoding")
        return await _read_chunked(reader, max_bytes)
    if "content-length" in headers:
        size = int(headers["content-length"])
        _require_size(size, max_bytes)
        return await reader.readexactly(size)
    body = bytearray()
    while piece := await reader.read(_PIECE_BYTES):
        body += piece
        _require_size(len(body), max_bytes)
    return bytes(body)


async def _read_chunked(reader: asyncio.StreamReader, max_bytes: int) -> bytes:
    body = bytearray()
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0].strip(), 16):
        _require_size(len(body) + size, max_bytes)
        body += await reader.readexactly(size)
        if await reader.readexactly(2) != b"\r\n":
            raise ValueError("broken chunk")
    return bytes(body)


def _require_size(size: int, max_bytes: int) -> None:
    if size < 0 or size > max_bytes:
        raise FetchError("TOO_LARGE", f"has more than {max_bytes} bytes")
