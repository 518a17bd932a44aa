"""Answers over real sockets, between a fake encoder and a fake decoder."""

import asyncio
import hashlib

import grpc
from diptych.v1 import chat_service_pb2 as pb
from diptych.v1 import content_pb2 as content
from diptych.v1 import generation_pb2

from gateway.prompt import PromptBuilder
from services.common.checkpoint import Checkpoint
from services.common.errors import InvalidRequest, Violation
from tests.gateway.client import IMAGE_FIELD, Generation, chat, failing, says, script
from tests.gateway.fakes import MAX_CONTEXT, Stage, expected_rows


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


async def test_what_the_encoder_refuses_is_said_of_the_item(stage: Stage, png: bytes) -> None:
    """A picture that only its pixels show to be broken is the client's error, at its field."""
    stage.encoder.error = InvalidRequest([Violation("chunk", "is truncated", "BROKEN_IMAGE")])
    code, _, _, fields = await failing(chat(stage, says(content.Image(data=png))))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert fields == {IMAGE_FIELD: "BROKEN_IMAGE"}


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
