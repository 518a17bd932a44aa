"""Chunks on the wire: protobuf's own form, whoever writes and whoever reads."""

import contextlib
from typing import Any

import pytest
from diptych.v1.decoder_service_pb2 import GenerateRequest
from diptych.v1.embedding_pb2 import EmbeddingChunk, EmbeddingReference
from diptych.v1.encoder_service_pb2 import EncodeResponse
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from services.common.chunk_wire import ENCODE_RESPONSE, GENERATE_REQUEST, Chunk

chunks = st.builds(
    EmbeddingChunk,
    media_index=st.integers(0, 2**32 - 1),
    byte_offset=st.integers(0, 2**64 - 1),
    data=st.binary(max_size=300),
    dtype=st.sampled_from(["", "float32", "bfloat16", "int8"]),
)


def facts(chunk: EmbeddingChunk | Chunk) -> tuple[int, int, bytes, str]:
    """What either form says."""
    return chunk.media_index, chunk.byte_offset, bytes(chunk.data), chunk.dtype


@given(chunks)
def test_written_chunks_are_protobufs(chunk: EmbeddingChunk) -> None:
    """Who has only the generated code reads what was written."""
    written = GENERATE_REQUEST.write(Chunk(chunk.media_index, chunk.byte_offset, memoryview(chunk.data), chunk.dtype))
    assert GenerateRequest.FromString(written) == GenerateRequest(chunk=chunk)


@given(chunks)
def test_protobufs_chunks_are_read(chunk: EmbeddingChunk) -> None:
    """What the generated code writes is read, and rows stay where they were received."""
    raw = EncodeResponse(chunk=chunk).SerializeToString()
    read = ENCODE_RESPONSE.read(raw)
    assert isinstance(read, Chunk)
    assert facts(read) == facts(chunk)
    assert read.data.obj is raw


@given(st.lists(chunks, min_size=1, max_size=2), st.data())
def test_odd_and_broken_bytes_are_read_as_protobuf_reads_them(parts: list[EmbeddingChunk], data: st.DataObject) -> None:
    """Fields in any order, twice, unknown, cut off or altered: the same chunk, the same message or the same error."""
    raw = bytearray(b"".join(GenerateRequest(chunk=part).SerializeToString() for part in parts))
    for place in data.draw(st.lists(st.integers(0, len(raw)), max_size=3)):
        raw[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    expected: Any = None
    with contextlib.suppress(DecodeError):
        expected = GenerateRequest.FromString(bytes(raw))
    if expected is None:
        with pytest.raises(DecodeError):
            GENERATE_REQUEST.read(bytes(raw))
    elif expected.HasField("chunk"):
        read = GENERATE_REQUEST.read(bytes(raw))
        assert isinstance(read, Chunk)
        assert facts(read) == facts(expected.chunk)
    else:
        assert GENERATE_REQUEST.read(bytes(raw)) == expected


def test_other_messages_stay_messages() -> None:
    """Both ways."""
    message = GenerateRequest(reference=EmbeddingReference(media_index=3, slice_keys=[b"k" * 32]))
    assert GENERATE_REQUEST.read(GENERATE_REQUEST.write(message)) == message
