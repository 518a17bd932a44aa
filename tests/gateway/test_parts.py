"""A video's embeddings part by part, between services that know of parts and services that do not."""

from collections.abc import Iterator

import pytest
from diptych.v1 import content_pb2 as content

from cli.local_redis import LocalRedis
from gateway.prompt import PromptBuilder
from services.common.checkpoint import Checkpoint
from tests.gateway.client import chat, says, script
from tests.gateway.fakes import Stage, expected_rows, staged

KEYS = [bytes([index]) * 32 for index in range(3)]


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with LocalRedis() as server:
        yield server.url


async def ask(stage: Stage, prompts: PromptBuilder, mp4: bytes, *, parts: tuple[bool, bool]) -> None:
    """A question about a video of three slices. `parts`: whether encoder and decoder know of them."""
    stage.encoder.streams, stage.decoder.accepts_parts = parts
    stage.decoder.scripts = [script(prompts, "ok")]
    response = await chat(stage, says(content.Video(data=mp4, fps=3)))
    assert response.choices[0].text == "ok"


def slice_size(stage: Stage, model: Checkpoint) -> int:
    header = stage.encoder.headers[0]
    assert header.grid.t == len(KEYS)
    return len(expected_rows(header, model)) // header.grid.t


@pytest.mark.parametrize("parts", [(True, True), (True, False), (False, True), (False, False)])
async def test_rows_arrive_whole(
    stage: Stage, model: Checkpoint, prompts: PromptBuilder, mp4: bytes, parts: tuple[bool, bool]
) -> None:
    """Whether encoder and decoder know of parts or not; an encoder is asked for them only if the decoder does."""
    await ask(stage, prompts, mp4, parts=parts)
    assert [header.stream for header in stage.encoder.headers] == [parts[1]]
    assert stage.decoder.rows[0] == expected_rows(stage.encoder.headers[0], model)


@pytest.mark.parametrize("parts", [(True, True), (True, False), (False, True), (False, False)])
async def test_references_arrive_in_order(
    model: Checkpoint, prompts: PromptBuilder, redis_url: str, mp4: bytes, parts: tuple[bool, bool]
) -> None:
    """A decoder that takes no parts gets one reference to all slices; others, each slice once."""
    async with staged(model, cache_url=redis_url) as stage:
        stage.decoder.cache, stage.encoder.stored = "redis", True
        await ask(stage, prompts, mp4, parts=parts)
        assert stage.decoder.references == {0: KEYS}
        assert not stage.decoder.rows


@pytest.mark.parametrize("num_named", [1, 2])
async def test_an_encoder_lost_between_references(
    model: Checkpoint, prompts: PromptBuilder, redis_url: str, mp4: bytes, num_named: int
) -> None:
    """What has been named is not named again, whoever encodes the rest."""
    async with staged(model, cache_url=redis_url) as stage:
        stage.decoder.cache, stage.encoder.stored = "redis", True
        stage.encoder.num_failures, stage.encoder.fail_after = 1, num_named
        await ask(stage, prompts, mp4, parts=(True, True))
        assert stage.decoder.references == {0: KEYS}
        assert len(stage.encoder.headers) == 2


@pytest.mark.parametrize("fail_after", [100, 1500])
@pytest.mark.parametrize("takes_parts", [True, False])
async def test_an_encoder_lost_between_rows(
    stage: Stage, model: Checkpoint, prompts: PromptBuilder, mp4: bytes, fail_after: int, takes_parts: bool
) -> None:
    """Rows that have been sent are not sent again."""
    stage.encoder.num_failures, stage.encoder.fail_after = 1, fail_after
    await ask(stage, prompts, mp4, parts=(True, takes_parts))
    assert stage.decoder.rows[0] == expected_rows(stage.encoder.headers[0], model)
    assert len(stage.encoder.headers) == 2
    assert fail_after % slice_size(stage, model)
