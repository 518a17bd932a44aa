"""Embedding chunks on the wire, without making messages of them.

A chunk is nearly all rows, and a message copies them whenever they are set, read, parsed or serialized. Here only the
few bytes beside them are protobuf's: rows stay where gRPC has put them, and are copied once, into what is sent. What
travels is the protocol's own form.
"""

from dataclasses import dataclass
from typing import Generic, TypeVar

from diptych.v1 import embedding_pb2
from diptych.v1.decoder_service_pb2 import GenerateRequest
from diptych.v1.encoder_service_pb2 import EncodeResponse

MessageT = TypeVar("MessageT", EncodeResponse, GenerateRequest)

_VARINT, _BYTES = 0, 2  # protobuf's wire types of what a chunk consists of
_MAX_VARINT_BYTES = 10


@dataclass(frozen=True, slots=True)
class Chunk:
    """What EmbeddingChunk says; `data` is a view of what was received or is to be sent."""

    media_index: int
    byte_offset: int
    data: memoryview
    dtype: str


class ChunkWire(Generic[MessageT]):
    """The form of a message that may be a chunk, which is a Chunk on this side of the wire."""

    def __init__(self, kind: type[MessageT]) -> None:
        self._kind: type[MessageT] = kind
        self._tag = _tag(kind, "chunk")

    def read(self, raw: bytes) -> MessageT | Chunk:
        """A received message; `raw` must live as long as a chunk's data. Raises DecodeError."""
        if (chunk := self._chunk_alone(memoryview(raw))) is not None:
            return chunk
        message: MessageT = self._kind.FromString(raw)
        if message.WhichOneof("message") != "chunk":
            return message
        chunk_message = message.chunk
        data = memoryview(chunk_message.data)
        return Chunk(chunk_message.media_index, chunk_message.byte_offset, data, chunk_message.dtype)

    def write(self, message: MessageT | Chunk) -> bytes:
        """What is to be sent."""
        if not isinstance(message, Chunk):
            return message.SerializeToString()
        facts = embedding_pb2.EmbeddingChunk(
            media_index=message.media_index, byte_offset=message.byte_offset, dtype=message.dtype
        ).SerializeToString()
        head = facts + bytes([_DATA]) + _varint(len(message.data))
        return b"".join((bytes([self._tag]), _varint(len(head) + len(message.data)), head, message.data))

    def _chunk_alone(self, raw: memoryview) -> Chunk | None:
        """The chunk that `raw` consists of; None where that is not plain to see, and protobuf has to decide."""
        try:
            return _chunk(_only_field(raw, self._tag))
        except _NotPlainError:
            return None


class _NotPlainError(Exception):
    """Not the usual form: it may be right all the same."""


def _tag(kind: type[MessageT] | type[embedding_pb2.EmbeddingChunk], field: str) -> int:
    """The byte in front of a field of bytes."""
    return kind.DESCRIPTOR.fields_by_name[field].number << 3 | _BYTES


_DATA = _tag(embedding_pb2.EmbeddingChunk, "data")

ENCODE_RESPONSE, GENERATE_REQUEST = ChunkWire(EncodeResponse), ChunkWire(GenerateRequest)


def _only_field(raw: memoryview, tag: int) -> memoryview:
    """The content of a message of one field."""
    if not raw or raw[0] != tag:
        raise _NotPlainError
    size, start = _read_varint(raw, 1)
    if start + size != len(raw):
        raise _NotPlainError
    return raw[start:]


def _chunk(fields: memoryview) -> Chunk:
    """Cuts the rows out of a chunk and gives the rest to protobuf."""
    place, before, data, after = 0, fields[:0], fields[:0], fields
    while place < len(fields):
        tag, start = fields[place], place + 1
        end = _field_end(fields, tag, start)
        if tag == _DATA:
            if data:
                raise _NotPlainError
            _, start = _read_varint(fields, start)
            before, data, after = fields[:place], fields[start:end], fields[end:]
        place = end
    facts = embedding_pb2.EmbeddingChunk.FromString(b"".join((before, after)))
    return Chunk(facts.media_index, facts.byte_offset, data, facts.dtype)


def _field_end(fields: memoryview, tag: int, start: int) -> int:
    """Where the field ends whose content begins at `start`."""
    if tag >= 0x80 or tag & 7 not in (_VARINT, _BYTES):
        raise _NotPlainError
    value, end = _read_varint(fields, start)
    if tag & 7 == _BYTES:
        end += value
    if end > len(fields):
        raise _NotPlainError
    return end


def _read_varint(raw: memoryview, start: int) -> tuple[int, int]:
    """A number and where it ends."""
    value = 0
    for count, byte in enumerate(raw[start : start + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            return value, start + count + 1
    raise _NotPlainError


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
