"""Calls of encoder and decoder, as a gateway would make them, that say what is not so."""

from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import numpy as np
from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import content_pb2 as content
from diptych.v1 import decoder_service_pb2 as decoder
from diptych.v1 import embedding_pb2 as embedding
from diptych.v1 import encoder_service_pb2 as encoder
from diptych.v1 import generation_pb2 as generation
from diptych.v1.chat_service_pb2_grpc import ChatServiceStub
from diptych.v1.decoder_service_pb2_grpc import DecoderServiceStub
from diptych.v1.encoder_service_pb2_grpc import EncoderServiceStub

from tests.hostile import images
from tests.hostile.carriers import encode_header, encode_messages
from tests.hostile.outcome import Outcome, names, refusal

_MOST, _CALL_S = 2**32 - 1, 60.0
Lie = Callable[[Any], None]


def grid(**sides: int) -> Lie:
    """A header that lies about its grid."""
    return lambda header: header.grid.CopyFrom(content.Grid(**sides))


def fields(**values: object) -> Lie:
    """A message with other values."""

    def change(message: Any) -> None:
        for name in values:
            message.ClearField(name)
        message.MergeFrom(type(message)(**values))

    return change


HEADERS: Final[list[tuple[Lie, str]]] = [
    (grid(), "grid"),
    (grid(t=1, h=3, w=4), "grid"),
    (grid(t=_MOST, h=_MOST, w=_MOST), "grid"),
    (fields(resized_height=57), "resized_height"),
    (fields(resized_height=0), "resized_height"),
    (fields(resized_width=_MOST - 3), "grid"),
    (fields(file_sizes=[2**64 - 1]), "file_sizes"),
    (fields(file_sizes=[len(images.PNG) - 1]), "file_sizes"),
    (fields(file_sizes=[len(images.PNG) + 1]), "file_sizes"),
    (fields(file_sizes=[]), "file_sizes"),
    (fields(file_sizes=[1] * 100_000), "file_sizes"),
    (fields(frame_indices=[0, 1]), "frame_indices"),
    (fields(media_key=b"short"), "media_key"),
    (fields(tenant=""), "tenant"),
    (fields(kind=0), "kind"),
]
"""What makes an Encode header wrong, and the field that must be named."""


async def try_header(stub: EncoderServiceStub, lie: Lie, name: str) -> Outcome:
    """A sound picture behind a header that lies."""
    header = encode_header("image", images.PNG)
    lie(header)
    call = _drain(stub.Encode(encode_messages(header, images.PNG), timeout=_CALL_S))
    return await refusal(call, lambda failed: names(failed, f"header.{name}"))


def _first(change: Lie) -> Lie:
    return lambda prompt: change(prompt.media[0])


PROMPTS: Final[list[tuple[Lie, str]]] = [
    (lambda prompt: prompt.ClearField("token_ids"), "prompt."),
    (lambda prompt: prompt.token_ids.__setitem__(0, 1 << 30), "prompt.token_ids"),
    (lambda prompt: prompt.ClearField("media"), "prompt.token_ids"),
    (lambda prompt: prompt.media.append(prompt.media[0]), "prompt.media"),
    (_first(grid()), "prompt.media[0].grid"),
    (_first(grid(t=1, h=3, w=4)), "prompt.media[0].grid"),
    (_first(grid(t=2, h=4, w=4)), "prompt."),
    (_first(grid(t=_MOST, h=_MOST - 1, w=_MOST - 1)), "prompt.media[0]"),
    (_first(fields(offset=_MOST)), "prompt.media[0].offset"),
    (_first(fields(offset=0)), "prompt.token_ids"),
    (_first(fields(kind=0)), "prompt."),
    (_first(fields(media_key=b"")), "prompt.media[0].media_key"),
    (_first(fields(media_key=bytes(1 << 20))), "prompt.media[0].media_key"),
    (lambda prompt: setattr(prompt.generation, "temperature", float("nan")), "prompt.generation.temperature"),
    (lambda prompt: setattr(prompt.generation, "num_choices", _MOST), "prompt.generation.num_choices"),
    (lambda prompt: setattr(prompt.generation, "regex", "a{9999}{9999}"), "prompt.generation.regex"),
]
"""What makes a prompt wrong for a decoder, and where the path of its refusal begins."""


def _zeros(num_bytes: int, **values: Any) -> embedding.EmbeddingChunk:
    return embedding.EmbeddingChunk(**{"data": bytes(num_bytes), "dtype": "float32", **values})


CHUNKS: Final[list[tuple[embedding.EmbeddingChunk, str]]] = [
    (_zeros(4), "prompt.media[0]"),
    (_zeros(1 << 20), "chunk.data"),
    (_zeros(0), ""),
    (_zeros(64, byte_offset=2**63), "chunk.byte_offset"),
    (_zeros(64, media_index=_MOST), "chunk.media_index"),
    (_zeros(64, dtype="object"), "chunk.dtype"),
    (_zeros(64, data=np.full(16, np.nan, np.float32).tobytes()), ""),
]
"""The only chunk of an item's embeddings, each of them wrong, and where the path of its refusal begins."""


async def sound_prompt(stub: ChatServiceStub) -> decoder.Prompt:
    """What the gateway would tell a decoder about a picture, apart from the key, which is new at each call."""
    parts = [content.Part(image=content.Image(data=images.PNG)), content.Part(text="What is this?")]
    conversation = content.Conversation(messages=[content.Message(role=content.ROLE_USER, parts=parts)])
    explained = await stub.Explain(chat.ExplainRequest(conversation=conversation), timeout=_CALL_S)
    [span] = explained.media
    place = decoder.MediaPlacement(
        offset=span.offset, grid=span.report.grid, media_key=b"a lie's", kind=content.MEDIA_KIND_IMAGE
    )
    # no_store: the prefix cache must not answer before the lie is seen
    return decoder.Prompt(
        request_id="hostile",
        tenant="default",
        token_ids=explained.token_ids,
        media=[place],
        generation=generation.Generation(max_tokens=8, temperature=0.0),
        no_store=True,
    )


async def try_prompt(stub: DecoderServiceStub, sound: decoder.Prompt, lie: Lie, path: str) -> Outcome:
    """A prompt that lies."""
    prompt = decoder.Prompt()
    prompt.CopyFrom(sound)
    lie(prompt)
    call = _drain(stub.Generate(_messages(prompt), timeout=_CALL_S))
    return await refusal(call, lambda failed: names(failed, path))


async def try_chunk(
    stub: DecoderServiceStub, sound: decoder.Prompt, chunk: embedding.EmbeddingChunk, path: str
) -> Outcome:
    """A sound prompt with embeddings that do not fit it."""
    call = _drain(stub.Generate(_messages(sound, chunk), timeout=_CALL_S))
    return await refusal(call, lambda failed: names(failed, path))


async def _messages(
    prompt: decoder.Prompt, *chunks: embedding.EmbeddingChunk
) -> AsyncIterator[decoder.GenerateRequest]:
    yield decoder.GenerateRequest(prompt=prompt)
    for chunk in chunks:
        yield decoder.GenerateRequest(chunk=chunk)


async def _drain(call: AsyncIterator[encoder.EncodeResponse] | AsyncIterator[decoder.GenerateResponse]) -> None:
    async for _ in call:
        pass
