"""A tenant at its quota of cache bytes is answered like all others, and leaves nothing more in Redis."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import content_pb2 as content
from redis import Redis

from cli.stack import Stack
from services.common.errors import Overloaded, from_rpc_error
from services.common.identity import Identity, token_line
from tests.exactness import cases
from tests.harness import Answer, ask, failure, gateway, running

FIRST, SECOND = (cases.user("", cases.picture(seed), "What is this?").to_conversation() for seed in (731, 730))
ONE_PICTURE_BYTES = 22_100  # FIRST takes 22,050 and the least value of SECOND 64
NUM_VALUES = 4  # of a picture: its slice, its manifest, its file, its header


def values(stack: Stack) -> dict[bytes, int]:
    """Names and sizes of all values in Redis; counts of them are none."""
    assert stack.redis is not None
    with Redis.from_url(stack.redis.url) as redis:
        return {name: int(redis.strlen(name)) for name in redis.scan_iter("diptych:*") if b":epoch:" not in name}


@pytest.fixture
def small(checkpoint: Path, tmp_path: Path) -> Iterator[Stack]:
    """A stack whose tenant acme may keep one picture, and globex anything."""
    tokens, quotas = tmp_path / "tokens", tmp_path / "quotas"
    tokens.write_text("\n".join(token_line(name, Identity(name)) for name in ("acme", "globex")))
    quotas.write_text("globex 0 0 0\n")
    settings = {
        "DIPTYCH_GATEWAY_TOKENS_FILE": str(tokens),
        "DIPTYCH_GATEWAY_QUOTAS_FILE": str(quotas),
        "DIPTYCH_GATEWAY_QUOTA_CACHE_BYTES": str(ONE_PICTURE_BYTES),
    }
    with running(checkpoint, tmp_path / "logs", redis=True, cache_url=None, **settings) as small:
        yield small


async def test_over_the_quota_of_cache_bytes(small: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second picture is answered rightly and not kept; an upload is refused; globex is not; a purge makes room."""

    async def asked(tenant: str, conversation: content.Conversation) -> Answer:
        monkeypatch.setenv("DIPTYCH_TOKEN", tenant)
        return await ask(small.address, conversation, max_tokens=4, temperature=0.0)

    await asked("acme", FIRST)
    before = values(small)
    assert len(before) == NUM_VALUES
    answers = [await asked("acme", SECOND) for _ in range(2)]
    assert values(small) == before
    assert (await asked("acme", FIRST)).cache == [content.CACHE_RESULT_HIT]

    monkeypatch.setenv("DIPTYCH_TOKEN", "acme")
    async with gateway(small.address) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.UploadMedia(iter([chat.UploadMediaRequest(chunk=bytes(ONE_PICTURE_BYTES))]))
    assert failure(refused.value).reason == "QUOTA_EXCEEDED"
    assert failure(refused.value).metadata == {"quota": "cache bytes", "limit": str(ONE_PICTURE_BYTES)}
    known = from_rpc_error(refused.value, "gateway")
    assert isinstance(known, Overloaded)
    assert known.retry_after_s > 1
    assert values(small) == before

    answers.append(await asked("globex", SECOND))
    assert len(values(small)) == 2 * NUM_VALUES
    assert answers[0].token_ids == answers[1].token_ids == answers[2].token_ids

    monkeypatch.setenv("DIPTYCH_TOKEN", "acme")
    async with gateway(small.address) as stub:
        await stub.PurgeMedia(chat.PurgeMediaRequest())
    await asked("acme", SECOND)
    assert len(values(small)) == 2 * NUM_VALUES
    assert (await asked("acme", SECOND)).cache == [content.CACHE_RESULT_HIT]
