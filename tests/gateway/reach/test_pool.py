"""Endpoints as they come, go, hang and break: real servers on loopback addresses behind a resolver of the test's."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import grpc
import pytest

from gateway.reach.addresses import Target
from gateway.reach.kinds import DECODERS, DecoderPool
from gateway.reach.pool import Pool
from services.common.channels import open_channel
from services.common.checkpoint import Checkpoint
from services.common.errors import ServiceUnavailable
from services.common.tls import TlsSettings, channel_credentials
from tests.certificates import Authority
from tests.gateway.client import until
from tests.gateway.reach.decoders import Decoders


@pytest.fixture
async def decoders(model: Checkpoint) -> AsyncIterator[Decoders]:
    """None yet."""
    decoders = Decoders(model)
    yield decoders
    await decoders.stop_all()


@asynccontextmanager
async def pool_of(decoders: Decoders, name: str = "localhost", ca: Path | None = None) -> AsyncIterator[DecoderPool]:
    """A pool of `name`, which is looked up at the test's resolver."""
    target = Target.parse(f"{name}:{decoders.port}")
    credentials = channel_credentials(TlsSettings(tls_ca=ca))
    open_one = partial(open_channel, credentials=credentials, authority=target.authority)
    async with Pool(DECODERS, target, open_one, decoders.resolve).running() as pool:
        yield pool


def hosts(pool: DecoderPool) -> set[str]:
    """Where calls may go."""
    return {endpoint.address.split(":")[1] for endpoint in pool.usable}


async def test_endpoints_are_taken_up_and_dropped(decoders: Decoders, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that the name gains is used, one that it loses is not, and a call that runs there goes on."""
    monkeypatch.setattr("gateway.reach.pool.RESOLVE_S", 0.05)
    await decoders.start("127.0.0.1")
    decoders.hosts = ["127.0.0.1"]
    async with pool_of(decoders) as pool:
        [first] = await pool.settled()
        await decoders.start("127.0.0.2")
        decoders.hosts = ["127.0.0.1", "127.0.0.2"]
        await until(lambda: hosts(pool) == {"127.0.0.1", "127.0.0.2"})
        with first.call() as stub:
            decoders.hosts = ["127.0.0.2"]
            await until(lambda: hosts(pool) == {"127.0.0.2"})
            await DECODERS.describe(stub, 5)
        await until(lambda: first._channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN)


async def test_a_draining_endpoint_gets_nothing_new(decoders: Decoders) -> None:
    """NOT_SERVING takes an endpoint out before it refuses calls; while it is the only one, nobody is there."""
    for host in ("127.0.0.1", "127.0.0.2"):
        await decoders.start(host)
    decoders.hosts = ["127.0.0.1", "127.0.0.2"]
    async with pool_of(decoders) as pool:
        await until(lambda: len(hosts(pool)) == 2)
        info = pool.usable[0].info
        assert info is not None
        await decoders.stop("127.0.0.1")
        assert hosts(pool) == {"127.0.0.2"}
        await decoders.stop("127.0.0.2")
        with pytest.raises(ServiceUnavailable):
            await pool.pick(b"", info)


async def test_nobody_waits_for_those_that_are_not_there(decoders: Decoders) -> None:
    """A name without addresses, and an address without a server, are known to be so at once."""
    async with asyncio.timeout(5):
        async with pool_of(decoders) as pool:
            assert await pool.settled() == []
        decoders.hosts, decoders.port = ["127.0.0.1"], 1
        async with pool_of(decoders) as pool:
            assert await pool.settled() == []


async def test_an_endpoint_that_hangs_is_left_alone(decoders: Decoders, monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes that are not answered open its circuit, and one that is closes it again."""
    monkeypatch.setattr("gateway.reach.endpoint.POLL_S", 0.02)
    monkeypatch.setattr("gateway.reach.endpoint.PROBE_TIMEOUT_S", 0.1)
    await decoders.start("127.0.0.1")
    decoders.hosts = ["127.0.0.1"]
    async with pool_of(decoders) as pool:
        [endpoint] = await pool.settled()
        decoders.fakes["127.0.0.1"].answers.clear()
        await until(lambda: endpoint.breaker.is_open)
        assert pool.usable == []
        decoders.fakes["127.0.0.1"].answers.set()
        await until(lambda: pool.usable == [endpoint])


async def test_the_last_endpoint_is_not_left_alone_for_long(
    decoders: Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long its circuit is to stay open, it is asked again while there is nobody else, and only then."""
    monkeypatch.setattr("gateway.reach.endpoint.POLL_S", 0.02)
    monkeypatch.setattr("gateway.reach.endpoint.PROBE_TIMEOUT_S", 0.3)
    monkeypatch.setattr("gateway.reach.breaker.FIRST_PAUSE_S", 1000.0)
    decoders.hosts = ["127.0.0.1", "127.0.0.2"]
    for host in decoders.hosts:
        await decoders.start(host)
    async with pool_of(decoders) as pool:
        await until(lambda: len(pool.usable) == 2)
        first, second = (decoders.fakes[host] for host in decoders.hosts)
        first.answers.clear()
        await until(lambda: len(pool.usable) == 1)
        first.answers.set()
        num_first, num_second = first.num_descriptions, second.num_descriptions
        await until(lambda: second.num_descriptions > num_second + 3)
        assert first.num_descriptions == num_first
        second.answers.clear()
        await until(lambda: not pool.usable)
        second.answers.set()
        await until(lambda: bool(pool.usable))


async def test_what_a_restarted_endpoint_runs_is_asked_again(decoders: Decoders) -> None:
    """Nothing is taken over from an earlier process at the same address."""
    await decoders.start("127.0.0.1")
    decoders.hosts = ["127.0.0.1"]
    async with pool_of(decoders) as pool:
        [endpoint] = await pool.settled()
        await decoders.stop("127.0.0.1")
        await until(lambda: pool.usable == [])
        await decoders.start("127.0.0.1", digest="new")
        await until(lambda: bool(pool.usable))
        assert endpoint.info is not None
        assert endpoint.info.checkpoint_digest == "new"


@pytest.mark.parametrize(("name", "is_trusted"), [("localhost", True), ("decoder", False)])
async def test_certificates_are_checked_for_the_configured_name(
    decoders: Decoders, tmp_path: Path, name: str, is_trusted: bool
) -> None:
    """Whatever address a name leads to, the certificate there must be the name's."""
    authority = Authority(tmp_path / "certificates")
    files = authority.issue("server")
    await decoders.start("127.0.0.2", tls_cert=files.cert, tls_key=files.key)
    decoders.hosts = ["127.0.0.2"]
    async with pool_of(decoders, name, authority.ca) as pool:
        assert bool(await pool.settled()) is is_trusted
