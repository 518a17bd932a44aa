"""The whole system with everything closed: TLS at both ends of every connection, tokens, sealed values."""

from pathlib import Path

import grpc
import pytest
from diptych.v1 import content_pb2 as content
from redis import Redis

from cli.client import ClientSettings
from services.common.identity import Identity, token_line
from tests.certificates import Authority
from tests.exactness import cases
from tests.harness import ask, failure, running

PICTURE = cases.Picture(cases.drawing(84, 112, 401))


async def test_a_closed_system_answers_its_callers_alone(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each tenant is answered and has a cache of its own, a stranger is not, and Redis can be read by none of them."""
    authority, tokens = Authority(tmp_path / "certificates"), tmp_path / "tokens"
    tokens.write_text("\n".join(token_line(name, Identity(name)) for name in ("acme", "globex")))
    service = authority.issue("service")
    closed = {
        "DIPTYCH_TLS_CERT": service.cert,
        "DIPTYCH_TLS_KEY": service.key,
        "DIPTYCH_TLS_CA": authority.ca,
        "DIPTYCH_TLS_CLIENT_CA": authority.ca,
        "DIPTYCH_GATEWAY_TOKENS_FILE": tokens,
        "DIPTYCH_CACHE_SECRET": "a secret",
    }
    conversation = cases.user("", PICTURE, "What?").to_conversation()
    environment = {name: str(value) for name, value in closed.items()}
    with running(checkpoint, tmp_path / "logs", redis=True, cache_url=None, **environment) as stack:
        for name in ("DIPTYCH_TLS_CERT", "DIPTYCH_TLS_KEY", "DIPTYCH_TLS_CA"):
            monkeypatch.setenv(name, str(closed[name]))
        found = []
        for tenant in ("acme", "acme", "globex"):
            monkeypatch.setenv("DIPTYCH_TOKEN", tenant)
            found += (await ask(stack.address, conversation, max_tokens=2)).cache
        assert found == [content.CACHE_RESULT_MISS, content.CACHE_RESULT_HIT, content.CACHE_RESULT_MISS]
        monkeypatch.setenv("DIPTYCH_TOKEN", "nobody")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask(stack.address, conversation, max_tokens=2)
        assert failure(refused.value).reason == "UNAUTHENTICATED"
        assert stack.redis is not None
        with Redis.from_url(stack.redis.url) as redis:
            values = [bytes(redis.get(name)) for name in redis.scan_iter("diptych:*")]
        assert len(values) == 8  # of each tenant a slice, a manifest, the file and its header
        assert all(value.startswith(b"DpSe") for value in values)
        assert ClientSettings().token.get_secret_value() not in "".join(
            child.log.read_text() for child in stack.children.values()
        )
