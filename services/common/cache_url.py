"""What a cache URL says. Nothing is connected and nothing imported for it, so that settings can check it.

    memory://
    redis[s]://[user:password@]host[:port][/db]
    unix://[user:password@]/path[?db=1]
    redis[s]+sentinel://[user:password@]host[:port],host[:port]…/service[/db]
    redis[s]+cluster://[user:password@]host[:port],host[:port]…

The s means TLS. What follows a question mark is given to redis-py: ssl_ca_certs, ssl_certfile, ssl_keyfile and so on;
sentinel_username and sentinel_password are for the sentinels themselves.
"""

from dataclasses import dataclass
from typing import Literal
from urllib.parse import SplitResult, urlsplit

Kind = Literal["memory", "server", "sentinel", "cluster"]
Address = tuple[str, int]

_SENTINEL_PORT, _SERVER_PORT = 26379, 6379
_SCHEMES: dict[str, Kind] = {
    "memory": "memory",
    "redis": "server",
    "rediss": "server",
    "unix": "server",
    "redis+sentinel": "sentinel",
    "rediss+sentinel": "sentinel",
    "redis+cluster": "cluster",
    "rediss+cluster": "cluster",
}


@dataclass(frozen=True, slots=True)
class CacheUrl:
    """A checked URL. `plain`: the same for one server, as redis-py reads it. `service`: what sentinels call it."""

    kind: Kind
    plain: str
    addresses: tuple[Address, ...] = ()
    service: str = ""


def parse_cache_url(url: str) -> CacheUrl:
    """ValueError for what is none of the forms above."""
    parts = _split(url)
    kind = _SCHEMES.get(parts.scheme)
    if kind is None:
        known = ", ".join(f"{scheme}://" for scheme in _SCHEMES)
        raise ValueError(f"a cache URL starts with one of {known}, not {parts.scheme}://")
    if kind in {"memory", "server"}:
        return CacheUrl(kind, url)
    user, _, hosts = parts.netloc.rpartition("@")
    addresses = tuple(_address(host, kind) for host in hosts.split(","))
    service, db = _path(parts, kind)
    return CacheUrl(kind, _plain(parts, user, addresses[0], db), addresses, service)


def _split(url: str) -> SplitResult:
    """As urlsplit, which refuses several hosts where one of them stands in brackets, in some releases of Python."""
    scheme, _, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    netloc, slash, path = rest.partition("/")
    return SplitResult(scheme.lower(), netloc, slash + path, query, "")


def _path(parts: SplitResult, kind: Kind) -> tuple[str, str]:
    service, _, db = parts.path.removeprefix("/").partition("/")
    if kind == "cluster" and parts.path not in {"", "/", "/0"}:
        raise ValueError("a cluster has no database but 0")
    if kind == "sentinel" and not service:
        raise ValueError("the name of the sentinels' service is missing: redis+sentinel://host:port/service")
    if db and not db.isdecimal():
        raise ValueError(f"{db!r} is not the number of a database")
    return (service, db) if kind == "sentinel" else ("", "")


def _plain(parts: SplitResult, user: str, address: Address, db: str) -> str:
    host, port = address
    bare = f"[{host}]" if ":" in host else host
    scheme = parts.scheme.partition("+")[0]
    netloc = f"{user}@{bare}:{port}" if user else f"{bare}:{port}"
    return SplitResult(scheme, netloc, f"/{db}" if db else "", parts.query, "").geturl()


def _address(text: str, kind: Kind) -> Address:
    """ "host:port", "[::1]:port" or a host alone."""
    try:
        parts = urlsplit(f"//{text.strip()}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{text!r} is not host:port") from error
    if not host:
        raise ValueError(f"{text!r} is not host:port")
    return host, port or (_SENTINEL_PORT if kind == "sentinel" else _SERVER_PORT)
