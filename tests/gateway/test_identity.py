"""Tenants at the gateway: each caller works with its own data."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import content_pb2 as content

from services.common.checkpoint import Checkpoint
from services.common.identity import Identity, token_line
from tests.gateway.fakes import Stage, staged
from tests.harness import failure


@pytest.fixture
async def guarded(model: Checkpoint, tmp_path: Path) -> AsyncIterator[Stage]:
    """A gateway that knows the tokens "one" of acme and "two" of globex."""
    tokens = tmp_path / "tokens"
    tokens.write_text("\n".join([token_line("one", Identity("acme")), token_line("two", Identity("globex"))]))
    async with staged(model, tokens_file=tokens) as stage:
        yield stage


def bearer(token: str) -> list[tuple[str, str]]:
    """A call's metadata."""
    return [("authorization", f"Bearer {token}")]


def asking(**source: object) -> content.Conversation:
    """One picture and a question."""
    image = content.Image(**source)  # type: ignore[arg-type]
    parts = [content.Part(image=image), content.Part(text="What?")]
    return content.Conversation(messages=[content.Message(role=content.ROLE_USER, parts=parts)])


async def test_nobody_gets_in_without_a_token(guarded: Stage) -> None:
    """Calls of each shape are UNAUTHENTICATED, and neither encoder nor decoder hears of them."""
    uploads = iter([chat.UploadMediaRequest(chunk=b"x")] * 3)
    calls = [
        guarded.stub.GetModel(chat.GetModelRequest()),
        guarded.stub.StreamChat(chat.StreamChatRequest()).read(),
        guarded.stub.UploadMedia(uploads),
    ]
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert failure(caught.value).reason == "UNAUTHENTICATED"
    assert not guarded.encoder.headers
    assert not guarded.decoder.prompts


async def test_the_tenant_of_the_token_goes_all_the_way(guarded: Stage, png: bytes) -> None:
    """Encoder and decoder are told the caller's tenant, and each tenant's keys are its own."""
    for token in ("one", "two"):
        await guarded.stub.Chat(chat.ChatRequest(conversation=asking(data=png)), metadata=bearer(token))
    assert [header.tenant for header in guarded.encoder.headers] == ["acme", "globex"]
    assert [prompt.tenant for prompt in guarded.decoder.prompts] == ["acme", "globex"]
    first, second = (prompt.media[0].media_key for prompt in guarded.decoder.prompts)
    assert first != second


async def test_media_is_found_by_its_tenant_alone(guarded: Stage, png: bytes) -> None:
    """A digest that one tenant has sent is not there for another."""
    sent = await guarded.stub.UploadMedia(iter([chat.UploadMediaRequest(chunk=png)]), metadata=bearer("one"))
    request = chat.CountTokensRequest(conversation=asking(digest=sent.digest))
    assert (await guarded.stub.CountTokens(request, metadata=bearer("one"))).num_media_tokens
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await guarded.stub.CountTokens(request, metadata=bearer("two"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_purge_is_ones_own_unless_an_administrator_asks(model: Checkpoint, tmp_path: Path, png: bytes) -> None:
    """A user purges its own tenant, and is refused for another; an administrator may name any."""
    tokens = tmp_path / "tokens"
    callers = {"one": Identity("acme"), "two": Identity("globex"), "root": Identity("operators", "admin")}
    tokens.write_text("\n".join(token_line(token, identity) for token, identity in callers.items()))
    request = chat.CountTokensRequest(conversation=asking(data=png))
    async with staged(model, tokens_file=tokens) as stage:

        async def is_kept(token: str, digest: str) -> bool:
            named = chat.CountTokensRequest(conversation=asking(digest=digest))
            code = await stage.stub.CountTokens(named, metadata=bearer(token)).code()
            assert code in {grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND}
            return bool(code is grpc.StatusCode.OK)

        kept = await stage.stub.CountTokens(request, metadata=bearer("one"))
        await stage.stub.CountTokens(request, metadata=bearer("two"))
        digest = kept.media[0].digest
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stage.stub.PurgeMedia(chat.PurgeMediaRequest(tenant="acme"), metadata=bearer("two"))
        assert failure(caught.value).code is grpc.StatusCode.PERMISSION_DENIED
        assert await is_kept("one", digest)
        removed = await stage.stub.PurgeMedia(chat.PurgeMediaRequest(), metadata=bearer("one"))
        assert removed.num_values == 2  # the file and what its header says
        assert removed.num_bytes > len(png)
        assert (await is_kept("one", digest), await is_kept("two", digest)) == (False, True)
        await stage.stub.PurgeMedia(chat.PurgeMediaRequest(tenant="globex"), metadata=bearer("root"))
        assert not await is_kept("two", digest)
