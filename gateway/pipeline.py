"""One request's journey, top to bottom: validate, load media, build the prompt, look up or encode, decode, answer.

It begins with a look at what the decoders have just refused: who would be refused too is told so first.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from diptych.v1 import content_pb2, generation_pb2

from services.common.errors import PromptTooLong

from .affinity import prefix_key
from .answer import Answer, Delta
from .caller import Caller
from .decoding import DecodeJob
from .encoding import EncodeJob
from .media import MediaItem
from .prompt import Prompt
from .quotas import cost_of, longest_answer
from .reach.refusals import Wish
from .rooms import Rooms
from .stopwatch import Stopwatch
from .telemetry import Event, observed
from .turns import turns_of
from .validation import require_valid


@dataclass(frozen=True, slots=True)
class Prepared:
    """A valid conversation as the model's input; nothing is encoded yet. Prompts that start alike share `prefix`."""

    items: list[MediaItem]
    prompt: Prompt
    prefix: bytes
    no_store: bool


class Pipeline:
    """The journey. `rooms` are the gateway's parts, one for each step."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    async def prepare(
        self, conversation: content_pb2.Conversation, generation: generation_pb2.Generation | None, caller: Caller
    ) -> Prepared:
        """Steps 2 to 4: what is wrong, the media and their plans, the ids. Needs no other service."""
        rooms = self._rooms
        require_valid(conversation, generation, rooms.limits, rooms.vocab_size)
        items = await caller.deadline.bound(rooms.media.load(conversation, caller.owner))
        turns = turns_of(conversation, items)
        prompt = await asyncio.to_thread(rooms.prompts.build, turns, add_vision_id=conversation.add_vision_id)
        prefix = prefix_key(conversation, items, caller.tenant)
        return Prepared(items, prompt, prefix, conversation.no_store)

    def run(
        self,
        conversation: content_pb2.Conversation,
        asked: generation_pb2.Generation,
        caller: Caller,
        *,
        whole: bool = False,
    ) -> AsyncGenerator[Event]:
        """`Started`, deltas, `Finished` last and once. Raises DiptychError; closing it cancels the work behind it.

        `whole`: the client gets the answer at its end, so that its tokens may come here many at once.
        """
        return observed(self._run(conversation, asked, caller, whole), self._rooms.metrics, caller.request_id)

    async def _run(
        self, conversation: content_pb2.Conversation, asked: generation_pb2.Generation, caller: Caller, whole: bool
    ) -> AsyncGenerator[Event]:
        rooms, watch = self._rooms, Stopwatch()
        wish = Wish(caller.patience_s, asked.max_tokens or rooms.limits.max_completion_tokens)
        with rooms.decoding.expecting(wish):
            prepared = await self.prepare(conversation, asked, caller)
            watch.lap("media_ms")
            job, generation = await self._plan(prepared, asked, caller)
        job.prompt.unhurried = whole and not generation.stop  # a stop string is looked for here, token by token
        answer = Answer(generation.num_choices, rooms.prompts.tokenizer.token_bytes, generation.stop)
        cost = cost_of(prepared.items, len(prepared.prompt.token_ids), generation)
        with rooms.quotas.cost(caller.tenant, cost, lambda: longest_answer(generation) - answer.num_tokens):
            yield rooms.reports.started(prepared.items, prepared.prompt, generation, caller)
            remembering: asyncio.Task[None] | None = None  # begins with the answer, which it would delay
            async with aclosing(self._deltas(job, answer, watch)) as deltas:
                async for delta in deltas:
                    remembering = remembering or asyncio.create_task(self.remember(prepared, caller))
                    yield delta
            await (remembering or self.remember(prepared, caller))
        yield rooms.reports.finished(prepared.prompt, answer, job, watch)

    async def _deltas(self, job: DecodeJob, answer: Answer, watch: Stopwatch) -> AsyncGenerator[Delta]:
        """What the decoder says, as text; `answer` knows the end."""
        async with aclosing(self._rooms.decoding.generate(job)) as responses:
            async for response in responses:
                watch.first("time_to_first_token_ms")
                if response.WhichOneof("event") == "finished":
                    deltas = answer.finish(response.finished)
                else:
                    deltas = answer.add(response.tokens)
                for delta in deltas:
                    yield delta
                if answer.is_over:
                    break  # a stop string ended the last choice: leaving cancels the decoder's work

    async def remember(self, prepared: Prepared, caller: Caller) -> None:
        """Keep the media for later requests to name, unless this one forbids it."""
        if not prepared.no_store:
            await self._rooms.media.remember(prepared.items, caller.owner)

    async def _plan(
        self, prepared: Prepared, asked: generation_pb2.Generation, caller: Caller
    ) -> tuple[DecodeJob, generation_pb2.Generation]:
        """What the decoder shall do, refused here if it does not fit: before anything is encoded."""
        rooms, num_tokens = self._rooms, len(prepared.prompt.token_ids)
        with_media = bool(prepared.items)
        decoder = await caller.deadline.bound(rooms.capabilities.decoder(prepared.prefix, with_media=with_media))
        longest = rooms.longest_prompt(decoder.max_context_tokens)
        if num_tokens > longest:
            raise PromptTooLong(num_tokens, longest)
        generation = rooms.generation.effective(asked, decoder.max_context_tokens - num_tokens)
        jobs: list[EncodeJob] = []
        if with_media:
            jobs = await rooms.encode_jobs(prepared.items, decoder, caller, prepared.prefix, no_store=prepared.no_store)
        prompt = rooms.decoder_prompt(prepared.prompt, jobs, generation, decoder, caller)
        prompt.no_store = prepared.no_store
        return DecodeJob(caller, prompt, jobs, decoder, prepared.prefix), generation
