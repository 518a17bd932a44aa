"""What services read from one another and from the cache."""

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from diptych.v1 import content_pb2 as content
from diptych.v1 import decoder_service_pb2 as decoder
from diptych.v1 import encoder_service_pb2 as encoder
from diptych.v1 import generation_pb2 as generation
from google.protobuf.message import DecodeError

from services.common.cache.chunks import Head, split
from services.common.checkpoint import Checkpoint
from services.common.chunk_wire import GENERATE_REQUEST, Chunk
from services.common.embedding import (
    CachedManifest,
    CorruptValue,
    pack_manifest,
    pack_slice,
    unpack_manifest,
    unpack_slice,
)  # fmt: skip
from services.common.errors import DiptychError, InvalidRequest
from services.common.media.headers import ImageHeader, VideoHeader, pack_header, unpack_header
from services.common.seal import Seal
from services.decoder.embeddings import ItemRows, RowsFormat
from services.decoder.grammar import GrammarCompiler, GrammarError, GrammarKind, GrammarSource
from services.decoder.validation import Rules, check_prompt
from services.encoder.item import Limits, read_header
from tests.common.media.files import preprocessor
from tests.fuzz.target import Target

SEAL = Seal([b"secret"], "alpha")
NAME = "diptych:slice:00"
ROWS = np.arange(32, dtype=np.float32).reshape(4, 8)
SLICE = b"".join(pack_slice(ROWS.data.cast("B"), 4, 8, "float32", 1_800_000_000_000))
MANIFEST = pack_manifest(CachedManifest((2, 4, 4), 8, "float32", (b"k" * 32, b"l" * 32)))
HEADERS = [pack_header(ImageHeader("PNG", 60, 80, "RGB")), pack_header(VideoHeader(60, 80, 9, 2.5, "h264", "mp4"))]
VALUES: Mapping[bytes, object] = {SLICE: unpack_slice(SLICE), MANIFEST: unpack_manifest(MANIFEST)}


def targets(model: Path) -> Iterator[Target]:
    """Cached values, embeddings, headers and prompts."""
    checkpoint = Checkpoint.open(str(model))
    yield Target("cached slice", [SLICE], _slice, (CorruptValue,), 4.0)
    yield Target("cached manifest", [MANIFEST], _manifest, (CorruptValue,), 4.0)
    yield Target("cached header", HEADERS, _cached_header, (CorruptValue,), 3.0)
    yield Target("sealed value", [SEAL.close(NAME, SLICE), SEAL.close(NAME, MANIFEST)], _sealed, (CorruptValue,), 2.0)
    yield Target("chunk head", _heads(), _head, (), 4.0)
    yield Target("embedding chunks", _chunks(), _assemble, (DecodeError, InvalidRequest), 2.0)
    yield Target("encode header", _headers(), _header, (DecodeError, InvalidRequest), 3.0)
    yield _prompts(checkpoint)
    yield from _grammars(checkpoint)


def _slice(data: bytes) -> None:
    unpack_slice(data)
    assert data == SLICE, "an altered slice was taken for a good one"


def _manifest(data: bytes) -> None:
    unpack_manifest(data)
    assert data == MANIFEST, "an altered manifest was taken for a good one"


def _cached_header(data: bytes) -> None:
    if b"codec" in data:
        unpack_header(data, VideoHeader)
    else:
        unpack_header(data, ImageHeader)
    assert data in HEADERS, "an altered header was taken for a good one"


def _sealed(data: bytes) -> None:
    assert bytes(SEAL.open(NAME, data)) in VALUES, "an altered value was opened"


def _heads() -> list[bytes]:
    return [bytes(value) for _, value in split({"key": bytes(9 << 20)}) if len(value) < 100]


def _head(data: bytes) -> None:
    if (head := Head.of(data)) is not None:
        assert len(head.chunk_keys("key")) == head.num_chunks


def _chunks() -> list[bytes]:
    raw = memoryview(ROWS.tobytes())
    messages = [GENERATE_REQUEST.write(Chunk(0, at, raw[at : at + 64], "float32")) for at in (0, 64)]
    return [b"".join(struct.pack("<H", len(message)) + message for message in messages)]


def _assemble(data: bytes) -> None:
    item = ItemRows(RowsFormat(1, 4, 8, "float32"))
    while len(data) > 2:
        (size,) = struct.unpack_from("<H", data)
        message, data = GENERATE_REQUEST.read(data[2 : 2 + size]), data[2 + size :]
        if isinstance(message, Chunk):
            item.add_chunk(message)
        assert bool(torch.isfinite(item.rows[: item.num_ready]).all())
        if item.is_complete:
            assert item.rows.shape == (4, 8)
            return


def _headers() -> list[bytes]:
    image, video = content.MEDIA_KIND_IMAGE, content.MEDIA_KIND_VIDEO
    one, two = content.Grid(t=1, h=4, w=6), content.Grid(t=2, h=4, w=6)
    headers = [
        encoder.EncodeHeader(kind=image, file_sizes=[9], grid=one),
        encoder.EncodeHeader(kind=video, file_sizes=[9], frame_indices=[0, 4, 8, 12], grid=two),
        encoder.EncodeHeader(kind=video, file_sizes=[9, 9, 9], grid=two),
    ]
    for header in headers:
        header.request_id, header.tenant, header.media_key = "r", "t", b"k" * 32
        header.resized_height, header.resized_width = 56, 84
    return [header.SerializeToString() for header in headers]


def _header(data: bytes) -> None:
    item = read_header(encoder.EncodeHeader.FromString(data), preprocessor(), Limits(1 << 16, 1 << 20, 1 << 20))
    assert 0 < item.num_patches <= 1 << 16


def _prompts(checkpoint: Checkpoint) -> Target:
    rules = Rules(
        checkpoint_digest="d",
        vocab_size=checkpoint.text.vocab_size,
        image_token_id=checkpoint.image_token_id,
        video_token_id=checkpoint.video_token_id,
        merge_size=2,
        max_context_tokens=4096,
        defaults=checkpoint.generation,
    )
    pads = [checkpoint.image_token_id] * 6
    place = decoder.MediaPlacement(
        offset=2, grid=content.Grid(t=1, h=4, w=6), media_key=b"k" * 32, kind=content.MEDIA_KIND_IMAGE
    )
    options = generation.Generation(max_tokens=9, temperature=0.5, top_p=0.9, num_choices=2, top_logprobs=2, seed=1)
    options.logit_bias[3] = 0.5
    prompts = [
        decoder.Prompt(token_ids=[1, 2, 3], generation=options, checkpoint_digest="d", tenant="t"),
        decoder.Prompt(token_ids=[1, 2, *pads, 3], media=[place], generation=options, tenant="t"),
        decoder.Prompt(token_ids=[1], generation=generation.Generation(regex="a+")),
    ]

    def run(data: bytes) -> None:
        checked = check_prompt(decoder.Prompt.FromString(data), rules, 0)
        assert len(checked.token_ids) + checked.params.max_tokens <= rules.max_context_tokens

    seeds = [prompt.SerializeToString() for prompt in prompts]
    return Target("decoder prompt", seeds, run, (DecodeError, DiptychError), 2.0)


def _grammars(checkpoint: Checkpoint) -> Iterator[Target]:
    seeds = {
        GrammarKind.JSON_SCHEMA: [
            b'{"type": "object", "properties": {"a": {"type": "integer", "minimum": 1}}, "required": ["a"]}',
            b'{"anyOf": [{"const": "x"}, {"$ref": "#/$defs/n"}], "$defs": {"n": {"type": "array", "items": {}}}}',
            b'{"type": "string", "pattern": "^[A-Z]{2}\\\\d+$", "maxLength": 9}',
        ],
        GrammarKind.REGEX: [b"[A-Z]{2}\\d{5}(-[a-f0-9]+)?", b"(a|b)*c.{1,9}", "[äöü]+|東.".encode()],
        GrammarKind.LARK: [b'start: "a" b+\nb: /[0-9]{1,3}/ | "x"', b"start: WORD\nWORD: /\\w+/ & /[^x]+/"],
    }  # fmt: skip
    for kind, examples in seeds.items():
        compiler = GrammarCompiler(
            checkpoint.path / "tokenizer.json", checkpoint.text.vocab_size, checkpoint.generation.eos_token_ids
        )

        def run(data: bytes, kind: GrammarKind = kind, compiler: GrammarCompiler = compiler) -> None:
            source = GrammarSource(kind, data.decode(errors="replace"))
            for matcher in compiler.compile(source, 1):
                matcher.allowed_tokens(checkpoint.text.vocab_size)

        yield Target(f"grammar: {kind.value}", examples, run, (GrammarError,), 0.1)
