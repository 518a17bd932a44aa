"""Calls that end before their answer does: their memory comes back, and others go on."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from diptych.v1 import decoder_service_pb2

from services.common.errors import InvalidRequest, SlowReader
from services.decoder.grammar import GrammarCompiler
from tests.decoder.harness import Case, Model
from tests.decoder.serving import CALL_S, Message, Service, collect, prompt, serving


async def test_cancel_frees_everything(service: Service, mixed: Case) -> None:
    """A caller who goes away leaves no sequence and no block behind, whether running or waiting for embeddings."""
    running = service.stub.Generate(timeout=CALL_S)
    await running.write(prompt(service.model.case(9), max_tokens=2000, ignore_eos=True))
    await anext(aiter(running))
    stalled = service.stub.Generate(timeout=CALL_S)
    await stalled.write(prompt(mixed))
    running.cancel()
    stalled.cancel()
    await service.until_idle()


async def test_embeddings_that_never_come_end_the_call(gqa_model: Model, mixed: Case) -> None:
    """A caller who sends no embeddings and does not close either is cut off, and its blocks come back."""
    async with serving(gqa_model, embedding_timeout_s=0.2) as service:
        call = service.stub.Generate(timeout=CALL_S)
        await call.write(prompt(mixed))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collect(call)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await service.until_idle()


async def test_grammar_that_takes_too_long_is_refused(gqa_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grammar still being compiled after its time is refused by the name of its field; others go on."""
    over = threading.Event()
    compile_grammar = GrammarCompiler.compile
    async with serving(gqa_model, grammar_timeout_s=0.2) as service:
        with monkeypatch.context() as patched:
            patched.setattr(GrammarCompiler, "compile", lambda *_: over.wait(CALL_S))
            error = await service.fails(prompt(gqa_model.case(5), regex="a+"))
            assert isinstance(error, InvalidRequest)
            [violation] = error.violations
            assert (violation.field, violation.reason) == ("prompt.generation.regex", "TOO_COMPLEX")
        over.set()
        assert GrammarCompiler.compile is compile_grammar
        await service.generate(prompt(gqa_model.case(5)))


class StuckContext:
    """A caller whose connection takes nothing any more."""

    async def write(self, _response: decoder_service_pb2.GenerateResponse) -> None:
        """Never returns."""
        await asyncio.Event().wait()

    def time_remaining(self) -> float | None:
        """There is no deadline."""
        return None


async def test_slow_reader_is_cut_off(gqa_model: Model) -> None:
    """Who does not read for too long loses the call, and its blocks come back."""

    async def messages() -> AsyncIterator[Message]:
        yield prompt(gqa_model.case(5), max_tokens=1500, ignore_eos=True)

    async with serving(gqa_model, slow_reader_timeout_s=0.2) as service:
        stuck: Any = StuckContext()
        with pytest.raises(SlowReader):
            await service.servicer.Generate(messages(), stuck)
        await service.until_idle()
