"""What is told without an answer: counts, explanations, the model."""

from diptych.v1 import chat_service_pb2 as pb
from diptych.v1 import content_pb2 as content

from gateway.prompt import PromptBuilder
from services.common.checkpoint import Checkpoint
from tests.gateway.client import Generation, chat, says, script
from tests.gateway.fakes import MAX_CONTEXT, Stage


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
