"""What the engine does beside exact answers: sharing, waiting, fairness, cancelling, surviving faults."""

from collections.abc import Callable

import pytest
import torch

from services.common.errors import Overloaded
from services.decoder.sequence import Event, Failed
from tests.decoder.harness import UNPACED, Answer, Case, Harness, Model, Start


def idle(harness: Harness) -> bool:
    """Nothing runs and no block is held."""
    load = harness.engine.load
    return load.num_running == load.num_waiting == load.num_used_blocks == 0 and harness.pool.num_used == 0


def test_waiting_for_embeddings_holds_nobody_up(gqa_model: Model, start: Start) -> None:
    """While prompts wait for their embeddings, others are answered; then the waiting ones are, right."""
    harness = start(gqa_model, max_sequences=2)
    cases = [gqa_model.case(5, ("image", (1, 2, 3 + i)), 4, seed=i) for i in range(4)]
    waiting = [harness.submit(case, with_rows=False) for case in cases]
    text = gqa_model.case(30)
    assert harness.submit(text).wait().ids == gqa_model.generate(text, 12)
    assert not any(answer.tokens for answer in waiting)
    for answer, case in zip(waiting, cases, strict=True):
        harness.engine.provide(answer.request, 0, case.rows[0])
    assert [answer.wait().ids for answer in waiting] == [gqa_model.generate(case, 12) for case in cases]


def test_text_before_media_is_computed_meanwhile(gqa_model: Model, start: Start) -> None:
    """A prompt is worked on up to its first missing embedding, exactly."""
    harness = start(gqa_model, block_size=4)
    case = gqa_model.case(11, ("image", (1, 2, 3)), 4)
    answer = harness.submit(case, with_rows=False)
    harness.until(lambda: answer.request.sequences[0].num_computed == 11)
    harness.engine.cancel(answer.request)
    harness.until(lambda: idle(harness))


def test_a_prompt_is_computed_as_far_as_its_rows_reach(gqa_model: Model, start: Start) -> None:
    """Rows that come one by one are computed one by one, and what is generated is the same."""
    case = gqa_model.case(3, ("video", (2, 4, 4)), 3)
    harness = start(gqa_model)
    answer = harness.submit(case, with_rows=False)
    rows, offset = torch.full_like(case.rows[0], torch.nan), case.spans[0].offset
    sequence = answer.request.sequences[0]
    for num_rows in range(1, len(rows) + 1):
        rows[num_rows - 1] = case.rows[0][num_rows - 1]
        harness.engine.provide(answer.request, 0, rows, num_rows)
        if num_rows < len(rows):  # with the last one the answer begins, and may be over before anyone looks
            harness.until(lambda reached=offset + num_rows: sequence.num_computed >= reached)  # type: ignore[misc]
    assert answer.wait().ids == gqa_model.generate(case, 12)


def test_who_waits_for_embeddings_gives_up_its_memory(gqa_model: Model, start: Start) -> None:
    """Blocks held by a prompt that waits for embeddings are taken for one that can run."""
    harness = start(gqa_model, block_size=4, kv_cache_tokens=128)
    holder = gqa_model.case(80, ("image", (1, 2, 3)), 4)
    waiting = harness.submit(holder, with_rows=False)
    harness.until(lambda: waiting.request.sequences[0].num_computed == 80)
    other = gqa_model.case(100, seed=1)
    assert harness.submit(other).wait().ids == gqa_model.generate(other, 12)
    harness.engine.provide(waiting.request, 0, holder.rows[0])
    assert waiting.wait().ids == gqa_model.generate(holder, 12)


def test_prefix_is_shared_between_turns(gqa_model: Model, start: Start) -> None:
    """The next turn of a conversation computes only what is new, the answer's own blocks included."""
    harness = start(gqa_model, block_size=4)
    case = gqa_model.case(6, ("image", (1, 4, 4)), 6)
    first = harness.submit(case).wait()
    turn = gqa_model.case(6, ("image", (1, 4, 4)), 6)
    turn.token_ids += first.ids + gqa_model.case(5, seed=9).token_ids
    second = harness.submit(turn).wait()
    assert second.ids == gqa_model.generate(turn, 12)
    assert second.begun.num_cached_tokens == (len(case.token_ids) + len(first.ids) - 1) // 4 * 4


def test_the_fifth_turn_computes_only_its_own(gqa_model: Model, start: Start) -> None:
    """However long a conversation about a picture has become, a turn computes its question and less than two blocks."""
    harness = start(gqa_model, block_size=4)
    case = gqa_model.case(6, ("image", (1, 4, 4)))
    for turn in range(5):
        question = gqa_model.case(7, seed=turn).token_ids
        case.token_ids += question
        answer = harness.submit(case).wait()
        num_computed = len(case.token_ids) - answer.begun.num_cached_tokens
        assert turn == 0 or len(question) <= num_computed < len(question) + 2 * 4
        case.token_ids = case.token_ids + answer.ids
    assert len(case.token_ids) > 80


def test_cached_media_needs_no_embeddings(gqa_model: Model, start: Start) -> None:
    """A second question about a picture whose blocks are cached is answered before its embeddings arrive."""
    harness = start(gqa_model, block_size=4)
    case = gqa_model.case(6, ("image", (1, 4, 4)), 6)
    first = harness.submit(case).wait()
    assert harness.submit(case, with_rows=False).wait().ids == first.ids


@pytest.mark.parametrize("change", ["tenant", "media_key", "offset"])
def test_prefix_is_never_shared_wrongly(gqa_model: Model, start: Start, change: str) -> None:
    """Another tenant's prompt, another picture, or the same picture elsewhere finds nothing."""
    harness = start(gqa_model, block_size=4)
    case = gqa_model.case(("image", (1, 4, 4)), 6)
    harness.submit(case).wait()
    other = gqa_model.case(("image", (1, 4, 4)), 6)
    if change == "media_key":
        other.keys, other.rows = [b"other"], [torch.randn(16, gqa_model.width)]
    if change == "offset":
        other = gqa_model.case(4, ("image", (1, 4, 4)), 6)
        other.token_ids[:4] = case.token_ids[:4]
        other.token_ids[:4] = [1, 2, 3, 4]
        other.keys = case.keys
    answer = harness.submit(other, tenant="b" if change == "tenant" else "a").wait()
    assert answer.begun.num_cached_tokens == 0
    assert answer.ids == gqa_model.generate(other, 12)


def test_choices_share_the_prompt(gqa_model: Model, start: Start) -> None:
    """Choices wait for the first one's prompt and use its full blocks; greedy ones are all the same."""
    harness = start(gqa_model, block_size=4, max_step_tokens=7)
    case = gqa_model.case(40)
    answer = harness.submit(case, num_choices=3)
    harness.until(lambda: harness.pool.num_used > 0)
    answer.wait()
    expected = gqa_model.generate(case, 12)
    assert answer.tokens == {0: expected, 1: expected, 2: expected}
    assert answer.begun.num_cached_tokens == 0
    harness.until(lambda: idle(harness))


def test_tenants_take_turns(gqa_model: Model, start: Start) -> None:
    """A tenant with one request does not wait behind another's twenty."""
    harness = start(gqa_model, paused=True, max_sequences=1)
    order: list[str] = []
    busy = [harness.request(gqa_model.case(4, seed=i), tenant="busy") for i in range(20)]
    calm = harness.request(gqa_model.case(4, seed=50), tenant="calm")
    for answer in [*busy, calm]:
        tell = answer.request.on_event

        def on_event(event: Event, answer: Answer = answer, tell: Callable[[Event], None] = tell) -> None:
            tell(event)
            if answer.over.is_set():
                order.append(answer.request.tenant)

        answer.request.on_event = on_event
        harness.engine.submit(answer.request)
    harness.engine.start()
    for answer in [*busy, calm]:
        answer.wait()
    assert order.index("calm") <= 1


def test_full_queue_refuses_at_once(gqa_model: Model, start: Start) -> None:
    """Beyond the bounds on requests or tokens, a request fails with the time after which to try again."""
    harness = start(gqa_model, paused=True, max_waiting_requests=2, max_waiting_tokens=50)
    harness.submit(gqa_model.case(40))
    with pytest.raises(Overloaded) as caught:
        harness.submit(gqa_model.case(11))
    assert caught.value.retry_after_s >= 1
    harness.submit(gqa_model.case(10))
    with pytest.raises(Overloaded):
        harness.submit(gqa_model.case(1))
    harness.engine.start()


def test_cancel_at_any_moment_returns_all_blocks(gqa_model: Model, start: Start) -> None:
    """Requests cancelled while waiting, prefilling, decoding or preempted leave nothing, and the rest stays exact."""
    harness = start(gqa_model, block_size=4, kv_cache_tokens=160, max_step_tokens=16)
    kept: list[tuple[Case, Answer]] = []
    dropped: list[tuple[Case, Answer]] = []
    for i in range(30):
        case = gqa_model.case(5 + 7 * (i % 5), ("image", (1, 2, 2)), 3, seed=i)
        (kept if i % 3 == 0 else dropped).append((case, harness.submit(case, num_choices=1 + i % 2)))
        if i % 3 == 1:
            harness.engine.cancel(dropped[-1][1].request)
    for _, answer in dropped:
        harness.engine.cancel(answer.request)
    for case, answer in kept:
        assert answer.wait().ids == gqa_model.generate(case, 12)
    harness.until(lambda: idle(harness))


def test_a_failing_step_ends_only_its_requests(gqa_model: Model, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in a step fails the requests of that step; the engine answers the next one."""
    harness = start(gqa_model)
    run = harness.parts.engine._runner.run
    monkeypatch.setattr(harness.parts.engine._runner, "run", lambda _: 1 / 0)
    failed = harness.submit(gqa_model.case(9)).wait()
    assert isinstance(failed.events[-1], Failed)
    monkeypatch.setattr(harness.parts.engine._runner, "run", run)
    case = gqa_model.case(9)
    assert harness.submit(case).wait().ids == gqa_model.generate(case, 12)
    assert idle(harness)


def test_values_out_of_range_end_only_their_request(gqa_model: Model, start: Start) -> None:
    """Values that are not finite fail their own request; its neighbours and later users of its blocks stay exact."""
    harness = start(gqa_model, kv_cache_tokens=256, paused=True)
    bad, good = gqa_model.case(3, ("image", (1, 4, 4)), 5), gqa_model.case(20, seed=3)
    bad.rows = [torch.full_like(bad.rows[0], torch.nan)]
    answers = [harness.submit(bad), harness.submit(good)]
    harness.engine.start()
    assert isinstance(answers[0].wait().events[-1], Failed)
    assert answers[1].wait().ids == gqa_model.generate(good, 12)
    for seed in range(6):
        case = gqa_model.case(100, seed=seed)
        assert harness.submit(case).wait().ids == gqa_model.generate(case, 12)
    assert torch.isfinite(harness.parts.engine._runner.cache.memory).all()


def test_ends(gqa_model: Model, start: Start) -> None:
    """Stop ids, min_tokens, ignore_eos and max_tokens end an answer where they should."""
    harness = start(gqa_model)
    case = gqa_model.case(9)
    tokens = gqa_model.generate(case, 12)
    stop = next(token for token in tokens if token != tokens[0])
    at = tokens.index(stop)
    stopped = harness.submit(case, stop_ids=frozenset({stop})).wait()
    assert stopped.ids == tokens[:at]
    ended = stopped.request.sequences[0].ended
    assert ended is not None
    assert (ended.stop_token_id, ended.num_tokens) == (stop, at + 1)
    later = harness.submit(case, stop_ids=frozenset({stop}), min_tokens=at + 1).wait()
    assert len(later.ids) > at
    assert later.ids[at] != stop
    assert len(harness.submit(case, max_tokens=3).wait().ids) == 3


def test_seeded_samples_do_not_depend_on_the_batch(gqa_model: Model, start: Start) -> None:
    """The same seed gives the same tokens alone, in a batch, and with preemptions."""
    options = {"temperature": 1.0, "top_p": 0.95, "seed": 7, "max_tokens": 20}
    cases = [gqa_model.case(10 + i, seed=i) for i in range(8)]
    alone = [start(gqa_model).submit(case, **options).wait().ids for case in cases]
    batch = start(gqa_model, paused=True, kv_cache_tokens=96, block_size=4, **UNPACED)
    answers = [batch.submit(case, **options) for case in cases]
    batch.engine.start()
    assert [answer.wait().ids for answer in answers] == alone
    assert batch.engine.load.num_preemptions > 0
    assert len({tuple(ids) for ids in alone}) == len(alone)


def test_pads_are_never_sampled(gqa_model: Model, start: Start) -> None:
    """Even a bias cannot bring a pad id out."""
    harness = start(gqa_model)
    bias = tuple((pad, 1000.0) for pad in gqa_model.pads.values())
    answer = harness.submit(gqa_model.case(5), logit_bias=bias, temperature=1.0, max_tokens=50).wait()
    assert not set(answer.ids) & set(gqa_model.pads.values())


def test_tokens_come_as_they_are_made(gqa_model: Model, start: Start) -> None:
    """The beginning, one event a token, then the end of the choice, then the end of the request."""
    answer = start(gqa_model).submit(gqa_model.case(5), max_tokens=4).wait()
    assert [type(event).__name__ for event in answer.events] == ["Begun"] + ["Token"] * 4 + ["Ended", "Finished"]
