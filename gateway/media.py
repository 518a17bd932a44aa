"""Each media part of a conversation becomes bytes and a plan, from headers alone."""

import asyncio
import hashlib
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from diptych.v1 import content_pb2
from google.protobuf.message import Message

from services.common.checkpoint import Preprocessor
from services.common.errors import InvalidRequest, QuotaExceeded
from services.common.keys import Owner
from services.common.media.errors import MediaError, MediaRuleError
from services.common.media.plan import MediaPlan, SizeOptions, VideoSampling, plan_frames, plan_image, plan_video
from services.common.media.rules import DEFAULT_MAX_FRAMES
from services.common.telemetry.spans import traced

from .headers import Headers, NewHeaders
from .media_store import MediaStore
from .settings import Limits, MediaDefaults
from .sources import Source, Sources, refused
from .template import MediaKind

ResultT = TypeVar("ResultT")

_CONCURRENT_READS = 8  # of one request's media
_THREAD_BYTES = 64 << 10  # from here on, hashing them leaves the event loop

_KINDS = {"image": content_pb2.MEDIA_KIND_IMAGE, "video": content_pb2.MEDIA_KIND_VIDEO}


@dataclass(frozen=True, slots=True)
class MediaItem:
    """One item, in prompt order. `file_digests`: raw SHA-256 of each of `files`. `digest`: its name, "" for frames.

    `named`: digests by which its request asked for files that were kept already. `new_headers`: of files whose headers
    were not.
    """

    field: str
    plan: MediaPlan
    files: tuple[bytes, ...]
    file_digests: tuple[bytes, ...]
    digest: str
    new_headers: NewHeaders
    named: frozenset[str] = frozenset()

    @property
    def kind(self) -> content_pb2.MediaKind:
        """The protocol's word for what it is."""
        return _KINDS[self.plan.kind]

    @property
    def grid(self) -> content_pb2.Grid:
        """Patches along time, height and width."""
        t, h, w = self.plan.grid
        return content_pb2.Grid(t=t, h=h, w=w)

    def report(self) -> content_pb2.MediaReport:
        """What a client is told of it."""
        plan = self.plan
        return content_pb2.MediaReport(
            field=self.field,
            kind=self.kind,
            digest=self.digest,
            grid=self.grid,
            num_tokens=plan.num_tokens,
            source_height=plan.source_height,
            source_width=plan.source_width,
            resized_height=plan.height,
            resized_width=plan.width,
            frame_indices=plan.frame_indices,
            sampled_fps=plan.sampled_fps,
            min_pixels=plan.min_pixels,
            max_pixels=plan.max_pixels,
        )


class MediaLoader:
    """Loads and plans a conversation's media, all items at once."""

    def __init__(  # noqa: PLR0913, PLR0917 -- the loader's parts
        self,
        sources: Sources,
        store: MediaStore,
        headers: Headers,
        preprocessor: Preprocessor,
        limits: Limits,
        defaults: MediaDefaults,
    ) -> None:
        self._sources = sources
        self._store = store
        self._headers = headers
        self._preprocessor = preprocessor
        self._limits = limits
        self._defaults = defaults

    @traced("fetch")
    async def load(self, conversation: content_pb2.Conversation, owner: Owner) -> list[MediaItem]:
        """The items in prompt order. Raises InvalidRequest with what is wrong with every one of them."""
        budget = _Budget(owner, self._limits.max_request_media_bytes)
        items = await _gather(
            [
                self._load_image(f"{path}.image", part.image, budget)
                if part.WhichOneof("kind") == "image"
                else self._load_video(f"{path}.video", part.video, budget)
                for path, part in media_parts(conversation)
            ]
        )
        return [replace(item, named=frozenset(budget.named)) for item in items]

    async def remember(self, items: Sequence[MediaItem], owner: Owner) -> None:
        """Keep every file that the quota has room for, so that later requests can name it by its digest, and headers.

        Those that came from there are not written again: naming a file does not prolong its life.
        """
        files = {
            f"sha256:{digest.hex()}": (file, item.named)
            for item in items
            for digest, file in zip(item.file_digests, item.files, strict=True)
        }
        new = {digest: file for digest, (file, named) in files.items() if digest not in named}
        headers = {key: header for item in items for key, header in item.new_headers.items()}
        keeping = (self._keep(owner, digest, file) for digest, file in new.items())
        await asyncio.gather(self._headers.keep(headers, owner), *keeping)

    async def _keep(self, owner: Owner, digest: str, file: bytes) -> None:
        with suppress(QuotaExceeded):  # the request has what it needs
            await self._store.put(owner, digest, file)

    async def _read(self, field: str, source: Source, kind: MediaKind, budget: "_Budget") -> bytes:
        async with budget.gate:
            budget.take(field, 0)
            data = await self._sources.read(field, source, kind, budget.owner)
            if source.digest:
                budget.named.add(source.digest)
            budget.take(field, len(data))
            return data

    async def _load_image(self, field: str, image: content_pb2.Image, budget: "_Budget") -> MediaItem:
        data = await self._read(field, image, "image", budget)
        size = _size(image, self._defaults.image_min_pixels, self._defaults.image_max_pixels)
        digests = await _digests([data])
        with _Blame(field):
            found = await self._headers.images([data], digests, budget.owner)
            plan = plan_image(found.headers[0], size, self._preprocessor)
        return _item(field, plan, [data], digests, found.new)

    async def _load_video(self, field: str, video: content_pb2.Video, budget: "_Budget") -> MediaItem:
        if video.WhichOneof("source") == "frames":
            return await self._load_frames(field, video, budget)
        data = await self._read(field, video, "video", budget)
        digests = await _digests([data])
        with _Blame(field):
            found = await self._headers.video(data, digests[0], budget.owner)
            plan = plan_video(found.headers[0], self._frame_size(video), self._sampling(video), self._preprocessor)
        return _item(field, plan, [data], digests, found.new)

    async def _load_frames(self, field: str, video: content_pb2.Video, budget: "_Budget") -> MediaItem:
        frames = [(f"{field}.frames.frames[{n}]", frame) for n, frame in enumerate(video.frames.frames)]
        files = await _gather([self._read(path, frame, "image", budget) for path, frame in frames])
        digests = await _digests(files)
        with _Blame(field, is_list=True):
            found = await self._headers.images(files, digests, budget.owner)
            plan = plan_frames(found.headers, self._frame_size(video), self._total_pixels(video), self._preprocessor)
        # nothing is sampled here: the list's own fps only says how it was made
        plan = replace(plan, sampled_fps=_optional(video, "fps"))
        return replace(_item(field, plan, files, digests, found.new), digest="")

    def _frame_size(self, video: content_pb2.Video) -> SizeOptions:
        return _size(video, self._defaults.video_min_pixels, self._defaults.video_max_pixels)

    def _total_pixels(self, video: content_pb2.Video) -> int | None:
        exact = video.HasField("resized_height")
        total: int | None = _optional(video, "total_pixels", None if exact else self._defaults.video_total_pixels)
        return total

    def _sampling(self, video: content_pb2.Video) -> VideoSampling:
        counted = video.HasField("num_frames")
        most = self._limits.max_video_frames
        return VideoSampling(
            fps=_optional(video, "fps", None if counted else self._defaults.video_fps),
            num_frames=_optional(video, "num_frames"),
            min_frames=_optional(video, "min_frames"),
            max_frames=_optional(video, "max_frames", None if counted or most >= DEFAULT_MAX_FRAMES else most),
            start_seconds=_optional(video, "start_seconds"),
            end_seconds=_optional(video, "end_seconds"),
            total_pixels=self._total_pixels(video),
        )


@dataclass(slots=True)
class _Budget:
    """What one request's media may still take, and how many are read at once."""

    owner: Owner
    num_bytes: int
    gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_CONCURRENT_READS))
    named: set[str] = field(default_factory=set)

    def take(self, path: str, num_bytes: int) -> None:
        """Count bytes that were read. Raises InvalidRequest when the request has had its share."""
        self.num_bytes -= num_bytes
        if self.num_bytes < 0:
            raise refused(path, "makes the request's media too large together", "TOO_LARGE")


def media_parts(conversation: content_pb2.Conversation) -> Iterator[tuple[str, content_pb2.Part]]:
    """Every image and video with its part's path, in prompt order."""
    for turn, message in enumerate(conversation.messages):
        for number, part in enumerate(message.parts):
            if part.WhichOneof("kind") in ("image", "video"):
                yield f"conversation.messages[{turn}].parts[{number}]", part


class _Blame:
    """Turns what is wrong with media into a violation at the item's path."""

    def __init__(self, field: str, *, is_list: bool = False) -> None:
        self._field, self._is_list = field, is_list

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, MediaError):
            frame = f".frames.frames[{error.file_index}]" if self._is_list and error.file_index is not None else ""
            raise refused(self._field + frame, error.message, error.reason) from error
        if isinstance(error, MediaRuleError):
            option = error.option.replace("frames[", "frames.frames[")  # as the protocol spells it
            field = f"{self._field}.{option}" if option else self._field
            raise refused(field, error.message, "CANNOT_APPLY") from error


async def _digests(files: Sequence[bytes]) -> tuple[bytes, ...]:
    def digests() -> tuple[bytes, ...]:
        return tuple(hashlib.sha256(file).digest() for file in files)

    return digests() if sum(map(len, files)) < _THREAD_BYTES else await asyncio.to_thread(digests)


def _item(
    field: str, plan: MediaPlan, files: Sequence[bytes], digests: tuple[bytes, ...], new_headers: NewHeaders
) -> MediaItem:
    return MediaItem(field, plan, tuple(files), digests, f"sha256:{digests[0].hex()}", new_headers)


def _size(media: content_pb2.Image | content_pb2.Video, least: int | None, most: int | None) -> SizeOptions:
    """A request's sizes, the operator's limits where it names neither limits nor an exact size."""
    exact = media.HasField("resized_height")
    return SizeOptions(
        min_pixels=_optional(media, "min_pixels", None if exact else least),
        max_pixels=_optional(media, "max_pixels", None if exact else most),
        resized_height=_optional(media, "resized_height"),
        resized_width=_optional(media, "resized_width"),
    )


def _optional(message: Message, name: str, default: float | None = None) -> Any:
    """A field's value if it is set, else `default`."""
    return getattr(message, name) if message.HasField(name) else default


async def _gather(works: Sequence[Awaitable[ResultT]]) -> list[ResultT]:
    """All results in order; of failures all violations together, else the first."""
    results = await asyncio.gather(*works, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    violations = [violation for error in errors if isinstance(error, InvalidRequest) for violation in error.violations]
    if violations:
        raise InvalidRequest(violations)
    if errors:
        raise errors[0]
    return [result for result in results if not isinstance(result, BaseException)]
