"""The guarded way out: only where rules allow, by the address that was checked, within limits."""

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from gateway.fetch import Fetcher, FetchError, FetchRules, is_public

LOOPBACK = (ipaddress.ip_network("127.0.0.1/32"),)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


@asynccontextmanager
async def web(answer: Callable[[bytes], bytes]) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that answers each request head with bytes; yields its port and the heads it saw."""
    heads: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer(heads[-1]))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], heads


async def to_loopback(_host: str, _port: int) -> list[str]:
    return ["127.0.0.1"]


def fetcher(**rules: object) -> Fetcher:
    return Fetcher(FetchRules(networks=LOOPBACK, **rules), resolver=to_loopback)  # type: ignore[arg-type]


async def reason_of(url: str, fetch: Fetcher, max_bytes: int = 100) -> str:
    with pytest.raises(FetchError) as caught:
        await fetch.fetch(url, max_bytes)
    return caught.value.reason


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",  # noqa: S104
        "224.0.0.1", "255.255.255.255", "168.63.129.16", "::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1",
        "::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a00:1::",
        "2001:0:7f00:1::80ff:fffe", "240.0.0.1", "198.18.0.1",
    ],
)  # fmt: skip
def test_inner_addresses_are_not_public(address: str) -> None:
    """Loopback, private, link-local, metadata and their disguises are refused."""
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_outer_addresses_are_public(address: str) -> None:
    """What is on the open internet may be fetched from."""
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:1/", "http://2130706433/", "http://0177.0.0.1/", "http://0x7f000001/", "http://[::1]/",
     "http://[::ffff:127.0.0.1]/", "http://localhost/"],
)  # fmt: skip
async def test_no_spelling_leads_inside(url: str) -> None:
    """Decimal, octal, hexadecimal and mapped spellings are resolved first and then refused."""
    assert await reason_of(url, Fetcher(FetchRules())) in ("ADDRESS_REFUSED", "FETCH_FAILED")


async def test_one_inner_address_among_many_refuses_the_host() -> None:
    """A host with a public and a private address is refused: which one is used must not be luck."""

    async def mixed(_host: str, _port: int) -> list[str]:
        return ["8.8.8.8", "10.0.0.1"]

    assert await reason_of("http://x.test/", Fetcher(FetchRules(), resolver=mixed)) == "ADDRESS_REFUSED"


async def test_the_checked_address_is_the_one_connected_to() -> None:
    """The host is resolved once, and `Host` still carries its name."""
    calls = []

    async def once(host: str, _port: int) -> list[str]:
        calls.append(host)
        return ["127.0.0.1"] if len(calls) == 1 else ["8.8.8.8"]

    async with web(lambda _: OK) as (port, heads):
        fetch = Fetcher(FetchRules(networks=LOOPBACK), resolver=once)
        assert await fetch.fetch(f"http://pictures.test:{port}/a?b=c", 100) == b"hello"
    assert calls == ["pictures.test"]
    assert heads[0].startswith(b"GET /a?b=c HTTP/1.1\r\n")
    assert f"Host: pictures.test:{port}".encode() in heads[0]
    assert b"Accept-Encoding: identity" in heads[0]


async def test_redirects_are_checked_again() -> None:
    """A public host cannot send the gateway inside."""

    async def resolver(host: str, _port: int) -> list[str]:
        return ["127.0.0.1"] if host == "allowed.test" else ["10.0.0.1"]

    moved = b"HTTP/1.1 302 Found\r\nLocation: http://inside.test/\r\n\r\n"
    async with web(lambda _: moved) as (port, _heads):
        fetch = Fetcher(FetchRules(networks=LOOPBACK), resolver=resolver)
        assert await reason_of(f"http://allowed.test:{port}/", fetch) == "ADDRESS_REFUSED"


async def test_redirects_are_followed_and_counted() -> None:
    """A relative redirect is followed; too many are refused."""

    def answer(head: bytes) -> bytes:
        return OK if head.startswith(b"GET /b ") else b"HTTP/1.1 301 x\r\nLocation: /b\r\n\r\n"

    async with web(answer) as (port, _heads):
        assert await fetcher().fetch(f"http://x.test:{port}/a", 100) == b"hello"
    async with web(lambda _: b"HTTP/1.1 301 x\r\nLocation: /a\r\n\r\n") as (port, heads):
        assert await reason_of(f"http://x.test:{port}/a", fetcher(max_redirects=2)) == "TOO_MANY_REDIRECTS"
        assert len(heads) == 3


async def test_redirects_to_other_schemes_are_refused() -> None:
    """http never leads to file."""
    async with web(lambda _: b"HTTP/1.1 302 x\r\nLocation: file:///etc/passwd\r\n\r\n") as (port, _heads):
        assert await reason_of(f"http://x.test:{port}/", fetcher()) == "UNSUPPORTED_SCHEME"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", "TOO_LARGE"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"40\r\n" + b"x" * 64 + b"\r\n40\r\n", "TOO_LARGE"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 101, "TOO_LARGE"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", "TOO_LARGE"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", "FETCH_FAILED"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx", "FETCH_FAILED"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "FETCH_FAILED"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "FETCH_FAILED"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 10_000 + b"\r\n", "FETCH_FAILED"),
        (b"", "FETCH_FAILED"),
    ],
)
async def test_bad_answers(answer: bytes, reason: str) -> None:
    """Bodies beyond the limit, broken answers and encodings are refused."""
    async with web(lambda _: answer) as (port, _heads):
        assert await reason_of(f"http://x.test:{port}/", fetcher()) == reason


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n",
     b"HTTP/1.0 200 OK\r\n\r\nhello"],
)  # fmt: skip
async def test_bodies_of_every_framing(answer: bytes) -> None:
    """Chunked bodies and bodies that end with the connection are read whole."""
    async with web(lambda _: answer) as (port, _heads):
        assert await fetcher().fetch(f"http://x.test:{port}/", 100) == b"hello"


async def test_a_server_that_says_nothing_costs_bounded_time() -> None:
    """The time limit covers everything."""
    release = asyncio.Event()

    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        assert await reason_of(f"http://x.test:{port}/", fetcher(timeout_s=0.1)) == "FETCH_TIMEOUT"
        release.set()


@pytest.mark.parametrize(
    "url", ["http://user:secret@x.test/", "http:///path", "http://x.test/a b", "http://x.test/\r\nEvil: 1"]
)
async def test_malformed_urls(url: str) -> None:
    """Credentials, missing hosts and unescaped characters are refused before any connection."""
    assert await reason_of(url, fetcher()) in ("MALFORMED", "FETCH_FAILED")


async def test_hosts_outside_the_list_are_refused() -> None:
    """Where hosts are listed, no other is resolved."""
    rules = FetchRules(hosts=frozenset({"good.test"}), networks=LOOPBACK)
    assert await reason_of("http://bad.test/", Fetcher(rules, resolver=to_loopback)) == "ADDRESS_REFUSED"
