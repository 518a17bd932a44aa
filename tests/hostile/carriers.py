"""The ways by which a file reaches the gateway, and the encoder called directly."""

import base64
import functools
import hashlib
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, Literal

from diptych.v1 import content_pb2 as content
from diptych.v1 import encoder_service_pb2 as encoder
from diptych.v1.chat_service_pb2_grpc import ChatServiceStub

from cli.client import upload

Kind = Literal["image", "video"]
SOURCES: Final = ("data", "data URI", "file", "http", "digest")
FRAMES: Final = "frames"
ENCODE: Final = "Encode"
_SIDE: Final = 56


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- its name in the library
        """Nothing."""


@contextmanager
def http_server(folder: Path) -> Iterator[str]:
    """Serves a folder; its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass(frozen=True)
class Sender:
    """`folder` is one from which the gateway may read, and which `http` serves."""

    folder: Path
    http: str

    async def part(self, stub: ChatServiceStub, kind: Kind, data: bytes, source: str) -> content.Part:
        """The part of a conversation that carries a file in one of `SOURCES` or in `FRAMES`, twice."""
        if source == FRAMES:
            frames = content.FrameList(frames=[content.Frame(data=data)] * 2)
            return content.Part(video=content.Video(frames=frames))
        fields = await self._source(stub, kind, data, source)
        if kind == "image":
            return content.Part(image=content.Image(**fields))
        return content.Part(video=content.Video(**fields))

    async def _source(self, stub: ChatServiceStub, kind: Kind, data: bytes, source: str) -> dict[str, Any]:
        name = hashlib.sha256(data).hexdigest()
        match source:
            case "data":
                return {"data": data}
            case "data URI":
                return {"uri": f"data:{kind};base64,{base64.b64encode(data).decode()}"}
            case "digest":
                return {"digest": await upload(stub, data)}
        (self.folder / name).write_bytes(data)
        return {"uri": f"{self.http}/{name}" if source == "http" else f"file://{self.folder / name}"}


def encode_header(kind: Kind, data: bytes) -> encoder.EncodeHeader:
    """A header as a gateway would send it for a small picture, or for the first two frames of a video."""
    is_image = kind == "image"
    return encoder.EncodeHeader(
        request_id="hostile",
        tenant="default",
        kind=content.MEDIA_KIND_IMAGE if is_image else content.MEDIA_KIND_VIDEO,
        file_sizes=[len(data)],
        resized_height=_SIDE,
        resized_width=_SIDE,
        frame_indices=[] if is_image else [0, 1],
        grid=content.Grid(t=1, h=_SIDE // 14, w=_SIDE // 14),
        media_key=hashlib.sha256(data).digest(),
        inline_embeddings=True,
    )


async def encode_messages(header: encoder.EncodeHeader, data: bytes) -> AsyncIterator[encoder.EncodeRequest]:
    """The messages of one Encode call."""
    yield encoder.EncodeRequest(header=header)
    for start in range(0, len(data), 1 << 20):
        yield encoder.EncodeRequest(chunk=data[start : start + (1 << 20)])
