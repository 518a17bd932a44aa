"""The journey over real sockets, between a fake encoder and a fake decoder."""

import asyncio
import hashlib
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from diptych.v1 import chat_service_pb2 as pb
from diptych.v1 import content_pb2 as content
from diptych.v1 import generation_pb2
from google.rpc import error_details_pb2 as details
from google.rpc import status_pb2
from grpc_status import rpc_status

from cli.local_redis import LocalRedis
from gateway.prompt import PromptBuilder
from services.common.cache.open import open_cache
from services.common.checkpoint import Checkpoint
from services.common.embedding import CachedManifest, Slice
from services.common.errors import InvalidRequest, Violation
from tests.gateway.conftest import picture
from tests.gateway.fakes import MAX_CONTEXT, Stage, expected_rows, staged

IMAGE_FIELD = "conversation.messages[0].parts[0].image"
Generation = generation_pb2.Generation
GREEDY = Generation(temperature=0, max_tokens=50)


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with LocalRedis() as server:
        yield server.url


def says(*parts: str | content.Image | content.Video) -> content.Conversation:
    made = [
        content.Part(text=part)
        if isinstance(part, str)
        else content.Part(image=part)
        if isinstance(part, content.Image)
        else content.Part(video=part)
        for part in parts
    ]
    return content.Conversation(messages=[content.Message(role=content.ROLE_USER, parts=made)])


async def chat(stage: Stage, conversation: content.Conversation, generation: Generation = GREEDY) -> pb.ChatResponse:
    response: pb.ChatResponse = await stage.stub.Chat(
        pb.ChatRequest(conversation=conversation, generation=generation), timeout=20
    )
    return response


async def failing(call: Any) -> tuple[grpc.StatusCode, str, dict[str, str], dict[str, str]]:
    """Code, reason, metadata, and violations by field of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = rpc_status.from_call(caught.value)
    assert status is not None, caught.value
    reason, metadata, fields = rich(status)
    return caught.value.code(), reason, metadata, fields


def rich(status: status_pb2.Status) -> tuple[str, dict[str, str], dict[str, str]]:
    info, bad = details.ErrorInfo(), details.BadRequest()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
    return info.reason, dict(info.metadata), {item.field: item.reason for item in bad.field_violations}


def script(prompts: PromptBuilder, text: str) -> list[int]:
    return prompts.tokenizer.encode_text(text)


async def test_text_alone(stage: Stage, prompts: PromptBuilder) -> None:
    """A question without media is answered, and the encoder is never asked."""
    stage.decoder.scripts = [script(prompts, "Größe 東京 😀 is fine")]
    response = await chat(stage, says("What?"))
    [choice] = response.choices
    assert choice.text == "Größe 東京 😀 is fine"
    assert choice.end.finish_reason == generation_pb2.FINISH_REASON_STOP
    assert list(choice.end.token_ids) == stage.decoder.scripts[0]
    assert response.usage.num_completion_tokens == len(stage.decoder.scripts[0]) + 1
    assert response.usage.num_prompt_tokens == len(stage.decoder.prompts[0].token_ids)
    assert response.usage.num_cached_tokens == 3
    assert response.timings.total_ms >= response.timings.time_to_first_token_ms > 0
    assert not stage.encoder.headers


async def test_media_inline(stage: Stage, prompts: PromptBuilder, model: Checkpoint, png: bytes, mp4: bytes) -> None:
    """Without a shared cache each item's rows reach the decoder whole, at its place in the prompt."""
    stage.decoder.scripts = [script(prompts, "ok")]
    response = await chat(stage, says(content.Image(data=png), "and", content.Video(data=mp4, fps=3)))
    prompt = stage.decoder.prompts[0]
    headers = sorted(stage.encoder.headers, key=lambda header: header.kind)
    assert stage.decoder.rows == {n: expected_rows(header, model) for n, header in enumerate(headers)}
    assert {hashlib.sha256(file).digest() for file in stage.encoder.files} == {
        hashlib.sha256(file).digest() for file in (png, mp4)
    }
    image, video = response.started.media
    assert (image.field, video.field) == (IMAGE_FIELD, "conversation.messages[0].parts[2].video")
    for report, placement, header in zip(response.started.media, prompt.media, headers, strict=True):
        assert placement.grid == report.grid == header.grid
        assert placement.media_key == header.media_key
        assert len(set(prompt.token_ids[placement.offset : placement.offset + report.num_tokens])) == 1
    assert prompt.token_ids[prompt.media[0].offset] == model.image_token_id
    assert prompt.token_ids[prompt.media[1].offset] == model.video_token_id
    assert response.usage.num_media_tokens == image.num_tokens + video.num_tokens


async def test_the_stream_starts_and_finishes_once(stage: Stage, prompts: PromptBuilder, png: bytes) -> None:
    """`started` comes first with the effective options, `finished` last and once."""
    stage.decoder.scripts = [script(prompts, "one two")]
    request = pb.StreamChatRequest(conversation=says(content.Image(data=png)), generation=Generation(temperature=0))
    events = [event async for event in stage.stub.StreamChat(request, timeout=20)]
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "started"
    assert kinds[-1] == "finished"
    assert set(kinds[1:-1]) == {"text_delta"}
    assert "".join(event.text_delta.text for event in events[1:-1]) == "one two"
    started, finished = events[0].started, events[-1].finished
    assert len(started.request_id) == 32
    assert started.generation == stage.decoder.prompts[0].generation
    assert started.generation.max_tokens == MAX_CONTEXT - started.num_prompt_tokens
    assert list(finished.media_cache) == [content.CACHE_RESULT_MISS]


async def test_a_stop_string_ends_the_answer_and_the_decoders_work(stage: Stage, prompts: PromptBuilder) -> None:
    """The text ends before the stop string; the decoder is cancelled; what was cut off is not counted.

    What the decoder found cached is told all the same.
    """
    stage.decoder.scripts, stage.decoder.endless = [script(prompts, "one END two")], True
    response = await chat(stage, says("?"), Generation(temperature=0, stop=["END"]))
    [choice] = response.choices
    assert (choice.text, choice.end.stop) == ("one ", "END")
    assert response.usage.num_completion_tokens == len(choice.end.token_ids)
    assert (response.usage.num_cached_tokens, response.timings.queue_ms) == (3, 1.5)
    assert prompts.tokenizer._tokenizer.decode(list(choice.end.token_ids)).startswith("one ")
    await asyncio.wait_for(stage.decoder.cancelled.wait(), 5)


async def test_choices_are_stopped_one_by_one(stage: Stage, prompts: PromptBuilder) -> None:
    """A stop string ends its own choice only; log probabilities come with their tokens."""
    stage.decoder.scripts = [script(prompts, "a.b"), script(prompts, "long answer")]
    stage.decoder.with_logprobs = True
    response = await chat(stage, says("?"), Generation(temperature=0, stop=["."], num_choices=2, top_logprobs=0))
    assert [choice.text for choice in response.choices] == ["a", "long answer"]
    assert [choice.end.HasField("stop") for choice in response.choices] == [True, False]
    for choice in response.choices:
        assert [logprob.token_id for logprob in choice.logprobs] == list(choice.end.token_ids)


async def test_media_are_named_by_digest_afterwards(stage: Stage, prompts: PromptBuilder, png: bytes) -> None:
    """A picture that was sent or uploaded once need not be sent again; an unknown digest is NOT_FOUND."""
    stage.decoder.scripts = [script(prompts, "ok")]
    first = await chat(stage, says(content.Image(data=png)))
    again = await chat(stage, says(content.Image(digest=first.started.media[0].digest)))
    assert again.started.media[0].grid == first.started.media[0].grid
    other = picture(84, 84)
    chunks = [pb.UploadMediaRequest(chunk=other[start : start + 50]) for start in range(0, len(other), 50)]
    uploaded = await stage.stub.UploadMedia(iter(chunks), timeout=20)
    assert (uploaded.num_bytes, uploaded.ttl_seconds) == (len(other), 900)
    await chat(stage, says(content.Image(digest=uploaded.digest)))
    unknown = chat(stage, says(content.Image(digest="sha256:" + "0" * 64)))
    code, reason, metadata, _ = await failing(unknown)
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "MEDIA_NOT_FOUND")
    assert metadata["field"] == f"{IMAGE_FIELD}.digest"


async def test_uploads_are_bounded(model: Checkpoint) -> None:
    """An upload that is empty or larger than allowed is refused."""
    async with staged(model, max_media_bytes=100) as stage:
        for chunks in ([], [b"x" * 60, b"x" * 60]):
            requests = iter([pb.UploadMediaRequest(chunk=chunk) for chunk in chunks])
            code, _, _, fields = await failing(stage.stub.UploadMedia(requests, timeout=20))
            assert code == grpc.StatusCode.INVALID_ARGUMENT
            assert list(fields) == ["chunk"]


async def test_batches_fail_one_by_one(stage: Stage, prompts: PromptBuilder, png: bytes) -> None:
    """Each conversation of a batch finishes or fails on its own, its events tagged."""
    stage.decoder.scripts = [script(prompts, "yes")]
    items = [
        pb.BatchChatItem(conversation=says("a"), generation=GREEDY),
        pb.BatchChatItem(conversation=says(content.Image(data=b"junk")), generation=GREEDY),
        pb.BatchChatItem(conversation=says(content.Image(data=png)), generation=GREEDY),
    ]
    ends: dict[int, str] = {}
    texts = {0: "", 1: "", 2: ""}
    async for event in stage.stub.BatchChat(pb.BatchChatRequest(items=items), timeout=20):
        assert event.index not in ends, "events after the end"
        if event.WhichOneof("event") == "text_delta":
            texts[event.index] += event.text_delta.text
        elif event.WhichOneof("event") in ("finished", "failed"):
            ends[event.index] = event.WhichOneof("event")
            if event.WhichOneof("event") == "failed":
                assert list(rich(event.failed)[2]) == [IMAGE_FIELD]
    assert ends == {0: "finished", 1: "failed", 2: "finished"}
    assert texts == {0: "yes", 1: "", 2: "yes"}


async def test_an_empty_batch_is_refused(stage: Stage) -> None:
    """There must be something to answer."""

    async def first() -> Any:
        return await stage.stub.BatchChat(pb.BatchChatRequest(), timeout=20).read()

    assert list((await failing(first()))[3]) == ["items"]


async def test_count_tokens_needs_no_other_service(
    stage: Stage, prompts: PromptBuilder, png: bytes, mp4: bytes
) -> None:
    """The count with encoder and decoder down equals what a run takes."""
    conversation = says(content.Image(data=png), "?", content.Video(data=mp4))
    stage.decoder.scripts = [script(prompts, "ok")]
    ran = await chat(stage, conversation)
    for name in ("encoder", "decoder"):
        await stage.servers[name].stop(0)
    counted = await stage.stub.CountTokens(pb.CountTokensRequest(conversation=conversation), timeout=20)
    assert counted.num_prompt_tokens == ran.usage.num_prompt_tokens
    assert counted.num_media_tokens == ran.usage.num_media_tokens
    assert counted.num_text_tokens == counted.num_prompt_tokens - counted.num_media_tokens
    assert counted.media == ran.started.media


async def test_explain(stage: Stage, model: Checkpoint, prompts: PromptBuilder, png: bytes) -> None:
    """An explanation shows the very ids, spans and options of a run, and encodes nothing."""
    conversation = says("look", content.Image(data=png), "what?")
    explained = await stage.stub.Explain(
        pb.ExplainRequest(conversation=conversation, generation=Generation(temperature=0, seed=7)), timeout=20
    )
    assert not stage.encoder.headers
    stage.decoder.scripts = [script(prompts, "ok")]
    ran = await chat(stage, conversation, Generation(temperature=0, seed=7))
    prompt = stage.decoder.prompts[0]
    assert explained.token_ids == prompt.token_ids
    [span] = explained.media
    assert (span.offset, span.cache_key) == (prompt.media[0].offset, prompt.media[0].media_key.hex())
    assert span.report == ran.started.media[0]
    assert explained.generation == ran.started.generation
    assert "<|image_pad|>" in explained.rendered_prompt
    text, media, rest = explained.positions
    grid = span.report.grid
    assert (media.start, media.length) == (text.length, span.report.num_tokens)
    assert (media.merged_grid.t, media.merged_grid.h, media.merged_grid.w) == (grid.t, grid.h // 2, grid.w // 2)
    assert rest.start == media.start + max(grid.t, grid.h // 2, grid.w // 2)
    assert explained.position_delta == rest.start + rest.length - len(explained.token_ids)
    assert explained.versions.checkpoint_digest == model.digest()
    assert explained.versions.vision_digest == "vision"


async def test_get_model(stage: Stage, model: Checkpoint) -> None:
    """The model's limits and defaults, from its own files and the services."""
    found = await stage.stub.GetModel(pb.GetModelRequest(), timeout=20)
    assert (found.model, found.max_context_tokens, found.dtype) == (model.name, MAX_CONTEXT, "float32")
    assert found.image_pixels.max_pixels == model.preprocessor.image.max_pixels
    assert found.default_generation.HasField("temperature")
    assert found.versions.template_digest.startswith("sha256:")


# --- the shared cache


async def test_references_where_the_cache_is_shared(
    model: Checkpoint, prompts: PromptBuilder, redis_url: str, png: bytes
) -> None:
    """What the encoder stored travels as a reference; what is cached is not encoded again."""
    async with staged(model, cache_url=redis_url) as stage:
        stage.decoder.cache, stage.encoder.stored = "redis", True
        stage.decoder.scripts = [script(prompts, "ok")]
        first = await stream(stage, says(content.Image(data=png)))
        assert first[-1].finished.media_cache == [content.CACHE_RESULT_MISS]
        assert stage.decoder.references == {0: [bytes(32)]}
        await store(redis_url, stage.decoder.prompts[0], model)
        second = await stream(stage, says(content.Image(data=png)))
        assert second[-1].finished.media_cache == [content.CACHE_RESULT_HIT]
        assert len(stage.encoder.headers) == 1
        explained = await stage.stub.Explain(pb.ExplainRequest(conversation=says(content.Image(data=png))), timeout=20)
        assert explained.media[0].cached == content.CACHE_RESULT_HIT


async def test_a_vanished_reference_is_encoded_once_more(
    model: Checkpoint, prompts: PromptBuilder, redis_url: str
) -> None:
    """What the decoder misses comes inline."""
    async with staged(model, cache_url=redis_url) as stage:
        stage.decoder.cache, stage.encoder.stored = "redis", True
        stage.decoder.scripts, stage.decoder.missing = [script(prompts, "ok")], {0}
        response = await chat(stage, says(content.Image(data=picture(56, 56, shade=1))))
        assert response.choices[0].text == "ok"
        assert [header.inline_embeddings for header in stage.encoder.headers] == [False, True]
        assert stage.decoder.rows[0] == expected_rows(stage.encoder.headers[0], model)


async def test_the_same_picture_asked_for_at_once_is_encoded_once(
    model: Checkpoint, prompts: PromptBuilder, redis_url: str
) -> None:
    """Requests for the same media wait for the first one's encode and use what it stored."""
    image = content.Image(data=picture(56, 56, shade=2))
    async with staged(model, cache_url=redis_url) as stage:
        stage.decoder.cache, stage.encoder.stored = "redis", True
        stage.decoder.scripts = [script(prompts, "ok")]
        stage.encoder.gate.clear()
        calls = [asyncio.create_task(chat(stage, says(image))) for _ in range(5)]
        await asyncio.wait_for(stage.encoder.started.wait(), 10)
        await until(lambda: len(stage.decoder.prompts) == 5)
        await store(redis_url, stage.decoder.prompts[0], model)
        stage.encoder.gate.set()
        await asyncio.gather(*calls)
        assert len(stage.encoder.headers) == 1


async def store(url: str, prompt: Any, model: Checkpoint) -> None:
    """Put what an encoder would."""
    cache = open_cache(url, ttl_s=60, max_bytes=1, timeout_s=5).of("default")
    placement = prompt.media[0]
    grid = (placement.grid.t, placement.grid.h, placement.grid.w)
    width = model.text.hidden_size
    rows = Slice(grid[1] * grid[2] // 4, width, "float32", memoryview(bytes(grid[1] * grid[2] * width)))
    assert await cache.put_slices({bytes(32): rows})
    assert await cache.put_manifest(placement.media_key, CachedManifest(grid, width, "float32", (bytes(32),)))
    await cache.close()


async def stream(stage: Stage, conversation: content.Conversation) -> list[pb.StreamChatResponse]:
    request = pb.StreamChatRequest(conversation=conversation, generation=GREEDY)
    return [event async for event in stage.stub.StreamChat(request, timeout=20)]


async def until(condition: Any, timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 -- other tasks tell nobody
            await asyncio.sleep(0.01)


# --- faults


async def test_violations_reach_the_client(stage: Stage) -> None:
    """Wrong fields of all kinds come back as BadRequest."""
    code, reason, _, fields = await failing(chat(stage, content.Conversation(), Generation(top_p=2)))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert set(fields) == {"conversation.messages", "generation.top_p"}


async def test_long_prompts_are_refused_before_anything_is_encoded(stage: Stage, png: bytes) -> None:
    """The answer tells how long the prompt is and how long it may be."""
    code, reason, metadata, fields = await failing(chat(stage, says(content.Image(data=png), "a b " * 5000)))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PROMPT_TOO_LONG")
    assert int(metadata["num_tokens"]) > int(metadata["max_tokens"]) == MAX_CONTEXT - 1
    assert fields == {"conversation": "PROMPT_TOO_LONG"}
    assert not stage.encoder.headers


async def test_no_decoder(stage: Stage) -> None:
    """Without a decoder the answer is UNAVAILABLE and names it."""
    await stage.servers["decoder"].stop(0)
    code, reason, _, _ = await failing(chat(stage, says("?")))
    assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "DECODER_UNAVAILABLE")


async def test_no_encoder(stage: Stage, prompts: PromptBuilder, png: bytes) -> None:
    """Without an encoder text is answered and pictures are UNAVAILABLE, also once it was there."""
    stage.decoder.scripts = [script(prompts, "ok")]
    await chat(stage, says(content.Image(data=png)))
    await stage.servers["encoder"].stop(0)
    assert (await chat(stage, says("?"))).choices[0].text == "ok"
    code, reason, _, _ = await failing(chat(stage, says(content.Image(data=png))))
    assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "ENCODER_UNAVAILABLE")
    await until(stage.decoder.cancelled.is_set)


async def test_an_encoder_that_never_was(stage: Stage, png: bytes) -> None:
    """Nothing is known of the encoder: pictures are UNAVAILABLE and the encoder is named."""
    await stage.servers["encoder"].stop(0)
    code, reason, _, _ = await failing(chat(stage, says(content.Image(data=png))))
    assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "ENCODER_UNAVAILABLE")


@pytest.mark.parametrize("fail_after", [None, 700])
async def test_the_encoder_is_tried_twice(
    stage: Stage, model: Checkpoint, prompts: PromptBuilder, png: bytes, fail_after: int | None
) -> None:
    """An encoder that goes away, even amid its rows, is asked once more; no row is lost or doubled."""
    stage.encoder.num_failures, stage.encoder.fail_after = 1, fail_after
    stage.decoder.scripts = [script(prompts, "ok")]
    assert (await chat(stage, says(content.Image(data=png)))).choices[0].text == "ok"
    assert stage.decoder.rows[0] == expected_rows(stage.encoder.headers[0], model)
    assert len(stage.encoder.headers) == 2


async def test_the_encoder_is_not_tried_three_times(stage: Stage, png: bytes) -> None:
    """A second failure is the answer."""
    stage.encoder.num_failures = 5
    assert (await failing(chat(stage, says(content.Image(data=png)))))[1] == "ENCODER_UNAVAILABLE"
    assert len(stage.encoder.headers) == 2


async def test_the_decoder_is_tried_twice_before_its_first_token(stage: Stage, prompts: PromptBuilder) -> None:
    """A decoder that goes away before it says anything is asked once more."""
    stage.decoder.num_failures, stage.decoder.scripts = 1, [script(prompts, "ok")]
    assert (await chat(stage, says("?"))).choices[0].text == "ok"
    assert len(stage.decoder.prompts) == 2


async def test_a_decoder_lost_amid_an_answer_is_said(stage: Stage, prompts: PromptBuilder) -> None:
    """After the first token a lost decoder is UNAVAILABLE, never a silent end or a second answer."""
    stage.decoder.fail_after_tokens, stage.decoder.scripts = 1, [script(prompts, "one two three")]
    request = pb.StreamChatRequest(conversation=says("?"), generation=GREEDY)
    call = stage.stub.StreamChat(request, timeout=20)

    async def drain() -> None:
        async for _ in call:
            pass

    code, reason, _, _ = await failing(drain())
    assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "DECODER_UNAVAILABLE")
    assert len(stage.decoder.prompts) == 1


async def test_what_the_encoder_refuses_is_said_of_the_item(stage: Stage, png: bytes) -> None:
    """A picture that only its pixels show to be broken is the client's error, at its field."""
    stage.encoder.error = InvalidRequest([Violation("chunk", "is truncated", "BROKEN_IMAGE")])
    code, _, _, fields = await failing(chat(stage, says(content.Image(data=png))))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert fields == {IMAGE_FIELD: "BROKEN_IMAGE"}


@pytest.mark.parametrize("digests", [("another", ""), ("", "another")])
async def test_other_checkpoints_are_refused(model: Checkpoint, png: bytes, digests: tuple[str, str]) -> None:
    """Services that run different checkpoints are never mixed."""
    async with staged(model, digests=digests) as stage:
        code, reason, _, _ = await failing(chat(stage, says(content.Image(data=png))))
        assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "VERSION_MISMATCH")


async def test_a_client_that_leaves_cancels_everything(stage: Stage, png: bytes) -> None:
    """Cancelling a stream cancels the decoder's and the encoder's calls."""
    stage.encoder.gate.clear()
    request = pb.StreamChatRequest(conversation=says(content.Image(data=png)), generation=GREEDY)
    call = stage.stub.StreamChat(request, timeout=20)
    assert (await call.read()).WhichOneof("event") == "started"
    await asyncio.wait_for(stage.encoder.started.wait(), 10)
    call.cancel()
    await asyncio.wait_for(stage.encoder.cancelled.wait(), 5)
    await asyncio.wait_for(stage.decoder.cancelled.wait(), 5)


async def test_a_cancelled_leader_leaves_its_turn_to_the_next(stage: Stage, prompts: PromptBuilder, png: bytes) -> None:
    """When the request that encodes for others goes away, another one encodes."""
    stage.encoder.gate.clear()
    stage.decoder.scripts = [script(prompts, "ok")]
    leader = asyncio.create_task(chat(stage, says(content.Image(data=png))))
    await asyncio.wait_for(stage.encoder.started.wait(), 10)
    follower = asyncio.create_task(chat(stage, says(content.Image(data=png))))
    await until(lambda: len(stage.decoder.prompts) == 2)
    leader.cancel()
    await asyncio.wait_for(stage.encoder.cancelled.wait(), 5)
    stage.encoder.gate.set()
    assert (await follower).choices[0].text == "ok"


async def test_deadlines_are_passed_on(stage: Stage, png: bytes) -> None:
    """A request whose time is over ends as DEADLINE_EXCEEDED, and its encode is cancelled."""
    stage.encoder.gate.clear()
    await chat_capabilities(stage)
    picture = says(content.Image(data=png))
    await stage.stub.CountTokens(pb.CountTokensRequest(conversation=picture), timeout=20)  # its reader runs by now
    call = stage.stub.Chat(pb.ChatRequest(conversation=picture, generation=GREEDY), timeout=0.5)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(stage.encoder.cancelled.wait(), 5)


async def chat_capabilities(stage: Stage) -> None:
    await stage.stub.GetModel(pb.GetModelRequest(), timeout=20)


async def test_without_redis_everything_still_answers(model: Checkpoint, prompts: PromptBuilder, png: bytes) -> None:
    """A cache that is configured and down is a cache that misses; digests live on in the gateway."""
    async with staged(model, cache_url="redis://127.0.0.1:1") as stage:
        stage.decoder.scripts = [script(prompts, "ok")]
        first = await chat(stage, says(content.Image(data=png)))
        again = await chat(stage, says(content.Image(digest=first.started.media[0].digest)))
        assert again.choices[0].text == "ok"


async def test_a_decoder_that_needs_no_embeddings_is_not_held_up(
    stage: Stage, prompts: PromptBuilder, png: bytes
) -> None:
    """A decoder that has the prompt from before answers at once; the encode that it does not need is cancelled."""
    stage.encoder.gate.clear()
    stage.decoder.scripts, stage.decoder.has_prompt = [script(prompts, "known")], True
    response = await chat(stage, says(content.Image(data=png)))
    assert response.choices[0].text == "known"


async def test_slow_encodes_hold_up_only_their_own_request(stage: Stage, prompts: PromptBuilder, png: bytes) -> None:
    """While one request waits for its picture, others are answered."""
    stage.encoder.gate.clear()
    stage.decoder.scripts = [script(prompts, "ok")]
    waiting = asyncio.create_task(chat(stage, says(content.Image(data=png))))
    await asyncio.wait_for(stage.encoder.started.wait(), 10)
    assert (await chat(stage, says("?"))).choices[0].text == "ok"
    stage.encoder.gate.set()
    assert (await waiting).choices[0].text == "ok"


async def test_no_store_is_passed_on_and_keeps_no_media(stage: Stage, png: bytes) -> None:
    """Encoder and decoder are told, the rows go inline though both share a cache, and no call keeps the file."""
    stage.encoder.stored, stage.decoder.cache = True, "redis"
    conversation = says(content.Image(data=png), "What?")
    conversation.no_store = True
    response = await chat(stage, conversation)
    await stage.stub.CountTokens(pb.CountTokensRequest(conversation=conversation))
    await stage.stub.Explain(pb.ExplainRequest(conversation=conversation))
    (header,), (prompt,) = stage.encoder.headers, stage.decoder.prompts
    assert header.no_store
    assert header.inline_embeddings
    assert prompt.no_store
    assert not stage.decoder.references
    named = says(content.Image(digest=response.started.media[0].digest), "What?")
    assert (await failing(chat(stage, named)))[0] is grpc.StatusCode.NOT_FOUND
