"""Answers through gateway, encoder, decoder and cache are the model's own."""

import pytest
from diptych.v1 import content_pb2 as content

from cli.stack import Stack
from tests.exactness import cases
from tests.exactness.cases import Case
from tests.exactness.reference import Reference
from tests.harness import ask

NUM_TOKENS = 12
CASES = [
    cases.user("text alone", "What can you see?"),
    cases.user("one image", cases.picture(1), "Describe."),
    cases.user("two images", cases.picture(2), cases.picture(3, 56, 140), "Compare."),
    cases.user("video", cases.clip(4), "What moves?"),
    cases.user("image and video", cases.picture(5), "then", cases.clip(6, 8), "Both?", system="Be brief."),
]
CASE_IDS = [case.name for case in CASES]


@pytest.mark.parametrize("case", CASES, ids=CASE_IDS)
async def test_greedy_tokens_equal_transformers(stack: Stack, reference: Reference, case: Case) -> None:
    """Cold and warm, the ids are those of transformers' `generate`, and the prompt has as many tokens."""
    prompt, expected = reference.generate(case, NUM_TOKENS)
    for _ in ("cold", "warm"):
        answer = await ask(stack.address, case.to_conversation(), max_tokens=NUM_TOKENS, temperature=0.0)
        assert answer.token_ids == expected
        assert answer.started.num_prompt_tokens == len(prompt.ids)
        assert answer.text == reference.tokenizer.decode(expected, skip_special_tokens=True)


@pytest.mark.parametrize("case", CASES, ids=CASE_IDS)
async def test_without_redis_the_answers_are_the_same(inline_stack: Stack, reference: Reference, case: Case) -> None:
    """With no shared cache the embeddings travel inline and change nothing."""
    _, expected = reference.generate(case, NUM_TOKENS)
    answer = await ask(inline_stack.address, case.to_conversation(), max_tokens=NUM_TOKENS, temperature=0.0)
    assert answer.token_ids == expected


async def test_the_second_time_the_encoder_is_not_called(stack: Stack) -> None:
    """A picture asked about again, with another question, is a hit; the report names its grid and tokens."""
    picture = cases.picture(100)
    first = await ask(stack.address, cases.user("", picture, "What?").to_conversation(), max_tokens=1)
    second = await ask(stack.address, cases.user("", "Again:", picture, "Why?").to_conversation(), max_tokens=1)
    assert first.cache == [content.CACHE_RESULT_MISS]
    assert second.cache == [content.CACHE_RESULT_HIT]
    report = second.started.media[0]
    assert report.field == "conversation.messages[0].parts[1].image"
    assert report.num_tokens == report.grid.t * report.grid.h * report.grid.w // 4
    assert report.digest == first.started.media[0].digest


async def test_frames_shared_by_two_clips_are_encoded_once(stack: Stack) -> None:
    """A longer clip that begins with the frames of a shorter one is a partial hit."""
    frames = cases.frame_list(200, 6)
    shorter = cases.Frames(frames.frames[:4], frames.options)
    await ask(stack.address, cases.user("", shorter, "What?").to_conversation(), max_tokens=1)
    answer = await ask(stack.address, cases.user("", frames, "What?").to_conversation(), max_tokens=1)
    assert answer.cache == [content.CACHE_RESULT_PARTIAL]


async def test_finished_says_what_it_cost(stack: Stack) -> None:
    """Usage adds up and the timings are those of one request."""
    case = cases.user("", cases.picture(101), "Describe.")
    answer = await ask(stack.address, case.to_conversation(), max_tokens=3, ignore_eos=True)
    usage, timings = answer.finished.usage, answer.finished.timings
    assert usage.num_prompt_tokens == answer.started.num_prompt_tokens
    assert usage.num_media_tokens == answer.started.media[0].num_tokens
    assert usage.num_completion_tokens == len(answer.token_ids) == 3
    assert 0 < timings.time_to_first_token_ms <= timings.total_ms
    assert timings.media_ms + timings.encode_ms <= timings.total_ms
