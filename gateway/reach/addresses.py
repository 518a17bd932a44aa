"""Where a service listens: the addresses behind a setting, looked up again and again where they may change."""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]

_SCHEMES = ("unix:", "unix-abstract:")


class AddressError(ValueError):
    """A setting names no address; the message says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """A service as it is configured. `fixed`: gRPC targets that never change; else `host` and `port` are looked up."""

    fixed: tuple[str, ...] = ()
    host: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> "Target":
        """Read "host:port", "dns:///host:port", "ipv4:a:1,b:1", "ipv6:…" or "unix:…". Raises AddressError."""
        if text.startswith(_SCHEMES):
            return cls(fixed=(text,))
        for scheme in ("ipv4:", "ipv6:"):
            if text.startswith(scheme):
                return cls(fixed=tuple(scheme + address for address in text.removeprefix(scheme).split(",")))
        host, port = _split(text.removeprefix("dns:///").removeprefix("dns:"))
        try:
            return cls(fixed=(_spelled(str(ipaddress.ip_address(host)), port),))
        except ValueError:
            return cls(host=host, port=port)

    @property
    def authority(self) -> str:
        """Whom calls are meant for and certificates must name; "" where each address stands for itself."""
        return f"{self.host}:{self.port}" if self.host else ""

    async def resolve(self, resolver: Resolver) -> list[str]:
        """Every address as a gRPC target, sorted. Raises OSError when the name cannot be looked up."""
        if self.fixed:
            return list(self.fixed)
        return sorted({_spelled(address, self.port) for address in await resolver(self.host, self.port)})


async def system_resolver(host: str, port: int) -> list[str]:
    """Every address of a host, as the system's resolver spells them. Raises OSError."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(f"{host} is no host name") from error
    return [str(entry[4][0]) for entry in found]


def _split(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise AddressError(f"{text} is not host:port")
    return host.strip("[]"), int(port)


def _spelled(address: str, port: int) -> str:
    return f"ipv6:[{address}]:{port}" if ":" in address else f"ipv4:{address}:{port}"
