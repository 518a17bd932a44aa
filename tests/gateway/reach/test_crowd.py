"""Requests find their way among several encoders and decoders."""

import asyncio
import shutil
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from diptych.v1 import chat_service_pb2 as pb
from diptych.v1 import content_pb2 as content
from diptych.v1.encoder_service_pb2_grpc import add_EncoderServiceServicer_to_server

from gateway.reach import suspects
from services.common.checkpoint import Checkpoint
from tests.gateway.client import GREEDY, IMAGE_FIELD, failing, says
from tests.gateway.conftest import picture
from tests.gateway.fakes import FakeDecoder, FakeEncoder
from tests.gateway.reach.crowd import Crowd, crowded

IMAGES = [content.Image(data=picture(56, 56, shade=shade)) for shade in range(24)]
BLOCK = 16


async def chat(crowd: Crowd, conversation: content.Conversation) -> pb.ChatResponse:
    request = pb.ChatRequest(conversation=conversation, generation=GREEDY)
    response: pb.ChatResponse = await crowd.stub.Chat(request, timeout=20)
    return response


def turns(number: int, count: int) -> content.Conversation:
    """The first turns of one user's conversation, under a system prompt that all users share."""
    random = np.random.default_rng(number)

    def said(role: content.Role, num_words: int) -> content.Message:
        text = " ".join(str(word) for word in random.integers(0, 10**6, num_words))
        return content.Message(role=role, parts=[content.Part(text=text)])

    system = content.Message(role=content.ROLE_SYSTEM, parts=[content.Part(text="You are of help. " * 10)])
    roles = (content.ROLE_USER, content.ROLE_ASSISTANT)
    return content.Conversation(messages=[system, *(said(roles[turn % 2], 30) for turn in range(2 * count - 1))])


class CachingDecoder(FakeDecoder):
    """Remembers the blocks of its prompts, as a decoder's prefix cache does, and counts what it finds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.blocks: set[int] = set()
        self.num_cached = self.num_tokens = 0

    async def _answer(self, requests: Any, context: Any) -> Any:
        async for response in super()._answer(requests, context):
            if response.WhichOneof("event") == "begun":
                self._look_up(list(self.prompts[-1].token_ids))
            yield response

    def _look_up(self, token_ids: list[int]) -> None:
        hashes = [hash(tuple(token_ids[:end])) for end in range(BLOCK, len(token_ids), BLOCK)]
        found = [known in self.blocks for known in hashes]
        self.num_cached += BLOCK * (found.index(False) if False in found else len(found))
        self.num_tokens += len(token_ids)
        self.blocks.update(hashes)


async def hit_rate(model: Checkpoint, num_decoders: int) -> tuple[float, list[int]]:
    """Tokens found cached of all prompts' tokens, and the requests of each decoder, over chats of five turns each."""
    decoders = [CachingDecoder(model) for _ in range(num_decoders)]
    async with crowded(model, [FakeEncoder(model)], decoders) as crowd:

        async def talk(number: int) -> None:
            for count in range(1, 6):
                await chat(crowd, turns(number, count))

        for first in range(0, 40, 8):
            await asyncio.gather(*(talk(number) for number in range(first, first + 8)))
    num_cached = sum(decoder.num_cached for decoder in decoders)
    return num_cached / sum(decoder.num_tokens for decoder in decoders), [len(one.prompts) for one in decoders]


async def test_four_decoders_find_what_one_would(model: Checkpoint) -> None:
    """With four decoders the prefix hit rate of chats is at least 90 % of a single one's, and all of them work."""
    (alone, _), (together, shares) = await hit_rate(model, 1), await hit_rate(model, 4)
    print(f"prefix hit rate: one decoder {alone:.3f}, four {together:.3f}; requests of each {shares}")
    assert together >= 0.9 * alone > 0.4
    assert min(shares) > 0


async def test_images_of_one_request_go_to_several_encoders(model: Checkpoint) -> None:
    """Each image has an encoder of its own choice, and the same one again."""
    encoders = [FakeEncoder(model) for _ in range(3)]
    async with crowded(model, encoders, [FakeDecoder(model)]) as crowd:
        for _ in range(2):
            for image in IMAGES[:8]:
                await chat(crowd, says(image))
        keys = [[header.media_key for header in encoder.headers] for encoder in encoders]
        assert sum(map(len, keys)) == 16
        assert sum(map(bool, keys)) > 1
        assert all(found[: len(found) // 2] == found[len(found) // 2 :] for found in keys)
        for encoder in encoders:
            encoder.headers.clear()
        await chat(crowd, says(*IMAGES[8:]))
        assert sum(bool(encoder.headers) for encoder in encoders) > 1


async def test_a_retry_goes_to_another_decoder(model: Checkpoint) -> None:
    """A decoder that fails before its first word costs nobody an answer while another one is there."""
    decoders = [FakeDecoder(model, num_failures=2) for _ in range(2)]
    async with crowded(model, [FakeEncoder(model)], decoders) as crowd:
        decoders[0].num_failures = 0
        for number in range(32):
            await chat(crowd, says(f"question {number}"))
        assert decoders[1].num_failures == 0


async def answered_in_the_end(crowd: Crowd, conversation: content.Conversation) -> None:
    """Ask until there is somebody again."""
    async with asyncio.timeout(20):
        while True:
            try:
                await chat(crowd, conversation)
                return
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.05)


class Deadly(FakeEncoder):
    """Dies of its first image."""

    server: grpc.aio.Server | None = None
    dying: "asyncio.Task[None]"

    async def _answer(self, header: Any, _context: Any) -> Any:
        assert self.server is not None
        self.dying = asyncio.create_task(self.server.stop(0))
        await asyncio.Event().wait()
        yield header


async def test_an_image_that_kills_two_encoders_does_not_kill_a_third(
    model: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused at its field, at once the next time, and the third encoder lives and works."""
    monkeypatch.setattr(suspects, "RETURN_S", 0.3)
    deadly = [Deadly(model) for _ in range(3)]
    async with crowded(model, deadly, [FakeDecoder(model)]) as crowd:
        for encoder, server in zip(deadly, crowd.servers, strict=True):
            encoder.server = server
        for _ in range(2):
            code, reason, _, fields = await failing(chat(crowd, says(IMAGES[0])))
            assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
            assert fields == {IMAGE_FIELD: "ENCODER_LOST"}
        assert sorted(len(encoder.headers) for encoder in deadly) == [0, 1, 1]


class CutOff(Deadly):
    """Loses its connections at its first image, and takes new ones; as another process if it is `reborn`."""

    address: str
    successor: grpc.aio.Server
    reborn = False

    async def _answer(self, header: Any, context: Any) -> Any:
        if self.server is not None:
            self.dying = asyncio.create_task(self._be_cut_off(self.server))
            self.server = None
            await asyncio.Event().wait()
        async for response in FakeEncoder._answer(self, header, context):
            yield response

    async def _be_cut_off(self, server: grpc.aio.Server) -> None:
        await server.stop(0)
        self.instance += "again" if self.reborn else ""
        self.successor = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        add_EncoderServiceServicer_to_server(self, self.successor)
        self.successor.add_insecure_port(self.address)
        await self.successor.start()


@asynccontextmanager
async def armed(crowd: Crowd, encoders: Sequence[CutOff], *, reborn: bool) -> AsyncIterator[None]:
    """From now on each of them loses its connections at its next image."""
    for encoder, server, endpoint in zip(encoders, crowd.servers, crowd.pools.encoders.endpoints, strict=True):
        encoder.server, encoder.address, encoder.reborn = server, endpoint.address.removeprefix("ipv4:"), reborn
    try:
        yield
    finally:
        await asyncio.gather(*(encoder.dying for encoder in encoders))
        await asyncio.gather(*(encoder.successor.stop(0) for encoder in encoders))


@pytest.mark.parametrize("reborn", [False, True])
async def test_encoders_that_were_only_cut_off_do_not_count(model: Checkpoint, *, reborn: bool) -> None:
    """An image whose two tries were cut off is answered when it comes again; refused if the encoders died meanwhile."""
    encoders = [CutOff(model), CutOff(model)]
    async with crowded(model, encoders, [FakeDecoder(model)]) as crowd, armed(crowd, encoders, reborn=reborn):
        code, reason, _, _ = await failing(chat(crowd, says(IMAGES[0])))
        if reborn:
            assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
        else:
            assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "ENCODER_UNAVAILABLE")
            await chat(crowd, says(IMAGES[0]))
        assert [len(encoder.headers) for encoder in encoders].count(1) == (2 if reborn else 1)


async def test_an_image_that_was_encoded_before_is_not_what_encoders_die_of(model: Checkpoint) -> None:
    """Two that die of something else while they have it leave it unanswered, but not refused when it comes again."""
    encoders = [CutOff(model), CutOff(model)]
    async with crowded(model, encoders, [FakeDecoder(model)]) as crowd:
        await chat(crowd, says(IMAGES[0]))
        async with armed(crowd, encoders, reborn=True):
            code, reason, _, _ = await failing(chat(crowd, says(IMAGES[0])))
            assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "ENCODER_UNAVAILABLE")
            await answered_in_the_end(crowd, says(IMAGES[0]))


def without_weights(model: Checkpoint, folder: Path) -> Checkpoint:
    """The same checkpoint as a gateway has it that holds the configs only."""
    shutil.copytree(model.path, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return Checkpoint.open(str(folder))


@pytest.fixture
def configs_only(model: Checkpoint, tmp_path: Path) -> Checkpoint:
    return without_weights(model, tmp_path / "configs")


def versions(model: Checkpoint, names: Sequence[str]) -> tuple[list[FakeEncoder], list[FakeDecoder]]:
    """Two encoders and two decoders, of one checkpoint each."""
    return [FakeEncoder(model, digest=name) for name in names], [FakeDecoder(model, digest=name) for name in names]


async def test_each_request_stays_with_one_checkpoint(model: Checkpoint, configs_only: Checkpoint) -> None:
    """While an upgrade rolls, encoder and decoder of a request are of one version, and their cache keys are its own."""
    encoders, decoders = versions(model, ("old", "new"))
    async with crowded(configs_only, encoders, decoders) as crowd:
        for image in IMAGES:
            await chat(crowd, says(image))
        used: dict[str, set[bytes]] = defaultdict(set)
        for encoder, decoder in zip(encoders, decoders, strict=True):
            used[encoder.digest] = {header.media_key for header in encoder.headers}
            assert used[encoder.digest] == {prompt.media[0].media_key for prompt in decoder.prompts}
            assert {prompt.checkpoint_digest for prompt in decoder.prompts} == {decoder.digest}
        assert not used["old"] & used["new"]


async def test_a_gateway_uses_its_own_checkpoint_alone(model: Checkpoint) -> None:
    """Endpoints of another checkpoint than the gateway's get nothing."""
    encoders, decoders = versions(model, ("", "another"))
    async with crowded(model, encoders, decoders) as crowd:
        for image in IMAGES[:8]:
            await chat(crowd, says(image))
        assert (len(encoders[0].headers), len(encoders[1].headers)) == (8, 0)
        assert (len(decoders[0].prompts), len(decoders[1].prompts)) == (8, 0)
