"""What is compared between the services and the reference, for each case and condition."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import numpy as np
from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import content_pb2 as content
from diptych.v1 import decoder_service_pb2, encoder_service_pb2
from diptych.v1 import generation_pb2 as generation
from diptych.v1.decoder_service_pb2_grpc import DecoderServiceStub
from diptych.v1.encoder_service_pb2_grpc import EncoderServiceStub

from tests.exactness.cases import Case, Frames, Media
from tests.exactness.fleet import Node
from tests.exactness.reference import Prompt
from tests.harness import Answer, gateway

NUM_TOKENS = 12
CHUNK_BYTES = 1 << 20
NUM_BATCHES = 4
GREEDY = generation.Generation(temperature=0.0, max_tokens=NUM_TOKENS)
# Together, these outgrow the memory of the decoder with hardly any of it many times over, whoever comes first.
NUM_LONG_TOKENS = 160
NUM_COPIES = 4
LONG = generation.Generation(temperature=0.0, max_tokens=NUM_LONG_TOKENS, min_tokens=NUM_LONG_TOKENS)


@dataclass(frozen=True)
class Expected:
    """What the reference says of one case."""

    case: Case
    prompt: Prompt
    ids: list[int]
    own_positions_differ: bool


@dataclass(frozen=True)
class Mismatch:
    """One case that did not come out equal, and how."""

    case: str
    what: str


async def alone(node: Node, expected: Sequence[Expected]) -> list[Mismatch]:
    """Each case by itself, streamed."""
    found = []
    async with gateway(node.gateway) as stub:
        for one in expected:
            request = chat.ChatRequest(conversation=one.case.to_conversation(), generation=GREEDY)
            try:
                response = await stub.Chat(request, timeout=120)
            except grpc.aio.AioRpcError as error:
                found.append(Mismatch(one.case.name, f"{error.code().name}: {error.details()}"))
                continue
            found += compare(one, response.started, list(response.choices[0].end.token_ids))
    return found


async def together(node: Node, expected: Sequence[Expected]) -> list[Mismatch]:
    """All cases at once, in as many BatchChats as messages of 4 MiB need: each runs beside whatever else is there."""
    groups = [expected[start::NUM_BATCHES] for start in range(NUM_BATCHES)]
    found = await asyncio.gather(*(batch(node, group) for group in groups))
    return [mismatch for group in found for mismatch in group]


async def outgrowing(node: Node, expected: Sequence[Expected]) -> list[Mismatch]:
    """Long answers, several copies of each at once."""
    return await batch(node, [*expected] * NUM_COPIES, LONG)


async def batch(node: Node, expected: Sequence[Expected], options: generation.Generation = GREEDY) -> list[Mismatch]:
    """Some cases in one BatchChat."""
    items = [chat.BatchChatItem(conversation=one.case.to_conversation(), generation=options) for one in expected]
    answers = [Answer() for _ in expected]
    failed: dict[int, str] = {}
    async with gateway(node.gateway) as stub:
        async for event in stub.BatchChat(chat.BatchChatRequest(items=items), timeout=600):
            match event.WhichOneof("event"):
                case "started":
                    answers[event.index].started = event.started
                case "finished":
                    answers[event.index].finished = event.finished
                case "failed":
                    failed[event.index] = event.failed.message
    found = [Mismatch(expected[index].case.name, message) for index, message in failed.items()]
    for index, (one, answer) in enumerate(zip(expected, answers, strict=True)):
        if index not in failed:
            found += compare(one, answer.started, answer.token_ids)
    return found


def compare(one: Expected, started: chat.Started, ids: list[int]) -> list[Mismatch]:
    """The prompt's length, every grid, and the ids."""
    found = []
    if started.num_prompt_tokens != len(one.prompt.ids):
        found.append(Mismatch(one.case.name, f"{started.num_prompt_tokens} prompt tokens, not {len(one.prompt.ids)}"))
    grids = [(m.grid.t, m.grid.h, m.grid.w) for m in started.media]
    if grids != [item.grid for item in one.prompt.media]:
        found.append(Mismatch(one.case.name, f"grids {grids}"))
    if ids != one.ids:
        found.append(Mismatch(one.case.name, f"ids {ids}, not {one.ids}"))
    return found


async def counted(node: Node, expected: Sequence[Expected]) -> list[Mismatch]:
    """CountTokens says what the run then uses."""
    found = []
    async with gateway(node.gateway) as stub:
        for one in expected:
            count = await stub.CountTokens(chat.CountTokensRequest(conversation=one.case.to_conversation()), timeout=60)
            media = sum(1 for kind in one.prompt.kinds if kind)
            said = (count.num_prompt_tokens, count.num_media_tokens, count.num_text_tokens)
            if said != (len(one.prompt.ids), media, len(one.prompt.ids) - media):
                found.append(Mismatch(one.case.name, f"counted {said}"))
    return found


async def explained(node: Node, expected: Sequence[Expected]) -> list[Mismatch]:
    """Explain gives the ids and the positions of the reference."""
    found = []
    async with gateway(node.gateway) as stub:
        for one in expected:
            request = chat.ExplainRequest(conversation=one.case.to_conversation())
            response = await stub.Explain(request, timeout=60)
            if list(response.token_ids) != one.prompt.ids:
                found.append(Mismatch(one.case.name, "explained ids differ"))
            positions = expand(response.positions)
            delta = int(positions.max()) + 1 - len(one.prompt.ids)
            if not np.array_equal(positions, one.prompt.positions) or response.position_delta != delta:
                found.append(Mismatch(one.case.name, "explained positions differ"))
    return found


def expand(runs: Sequence[chat.ExplainResponse.PositionRun]) -> np.ndarray:
    """Positions `[3, n]` from Explain's runs."""
    parts = []
    for run in runs:
        if run.HasField("merged_grid"):
            shape = (run.merged_grid.t, run.merged_grid.h, run.merged_grid.w)
            parts.append(run.start + np.indices(shape).reshape(3, -1))
        else:
            parts.append(run.start + np.tile(np.arange(run.length), (3, 1)))
    return np.concatenate(parts, axis=1)


async def encode(node: Node, item: Media, report: content.MediaReport, key: bytes) -> np.ndarray:
    """One item's rows `[tokens, width]` straight from the encoder, as the gateway would ask for them."""
    files = list(item.frames) if isinstance(item, Frames) else [item.data]
    header = encoder_service_pb2.EncodeHeader(
        request_id="exactness", tenant="default", kind=report.kind, file_sizes=[len(data) for data in files],
        resized_height=report.resized_height, resized_width=report.resized_width,
        frame_indices=[] if isinstance(item, Frames) else report.frame_indices,
        grid=report.grid, media_key=key, inline_embeddings=True,
    )  # fmt: skip
    data = b"".join(files)
    requests = [encoder_service_pb2.EncodeRequest(header=header)]
    requests += [
        encoder_service_pb2.EncodeRequest(chunk=data[at : at + CHUNK_BYTES]) for at in range(0, len(data), CHUNK_BYTES)
    ]
    rows, width = bytearray(), 0
    async with grpc.aio.insecure_channel(node.encoder) as channel:
        async for message in EncoderServiceStub(channel).Encode(iter(requests), timeout=120):
            width = message.manifest.width or width
            rows += message.chunk.data
    return np.frombuffer(bytes(rows), np.float32).reshape(-1, width)


async def preemptions(node: Node) -> int:
    """Sequences that the decoder has put back, since its start."""
    async with grpc.aio.insecure_channel(node.decoder) as channel:
        load = await DecoderServiceStub(channel).GetLoad(decoder_service_pb2.GetLoadRequest(), timeout=10)
        return int(load.num_preemptions)


async def first_token(node: Node, case: Case, alternatives: int) -> dict[int, float]:
    """Log probabilities of the likeliest first tokens."""
    options = generation.Generation(temperature=0.0, max_tokens=1, top_logprobs=alternatives, ignore_eos=True)
    async with gateway(node.gateway) as stub:
        request = chat.ChatRequest(conversation=case.to_conversation(), generation=options)
        response = await stub.Chat(request, timeout=120)
    return {a.token_id: a.logprob for a in response.choices[0].logprobs[0].alternatives}
