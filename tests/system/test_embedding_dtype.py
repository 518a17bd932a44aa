"""Rounded embeddings through gateway, encoder, cache and decoder, all of them real processes."""

from pathlib import Path

import pytest
from diptych.v1 import content_pb2 as content
from redis import Redis

from services.common.checkpoint import Checkpoint
from tests.exactness import cases
from tests.harness import ask, running


@pytest.mark.parametrize(("dtype", "num_bytes", "row_head"), [("bfloat16", 2, 0), ("int8", 1, 4)])
async def test_rounded_rows_are_answered(
    checkpoint: Path, tmp_path: Path, dtype: str, num_bytes: int, row_head: int
) -> None:
    """Inline, stored and from the cache the answer is the same, by a decoder in float32; the cache has fewer bytes."""
    conversation = cases.user("", cases.picture(900), "What is in this picture?").to_conversation()
    with running(checkpoint, tmp_path, DIPTYCH_ENCODER_EMBEDDING_DTYPE=dtype) as stack:
        answers = []
        for no_store in (True, False, False):
            conversation.no_store = no_store
            answers.append(await ask(stack.address, conversation, max_tokens=8, temperature=0.0, ignore_eos=True))
        assert stack.redis is not None
        with Redis.from_url(stack.redis.url) as redis:
            (name,) = redis.scan_iter("*:slice:*")
            stored_bytes = redis.strlen(name)
    assert len(answers[0].token_ids) == 8
    assert answers[0].token_ids == answers[1].token_ids == answers[2].token_ids
    assert answers[2].cache == [content.CACHE_RESULT_HIT]
    num_rows, width = answers[0].started.media[0].num_tokens, Checkpoint.open(str(checkpoint)).vision.hidden_size
    assert 0 < stored_bytes - num_rows * (row_head + width * num_bytes) < 64
