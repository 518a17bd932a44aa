"""Parts become bytes and plans; what is wrong is said at the item's path."""

import base64
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from diptych.v1 import content_pb2 as content
from prometheus_client import CollectorRegistry

from gateway.headers import Headers
from gateway.media import MediaItem, MediaLoader
from gateway.media_store import MediaStore
from gateway.settings import Limits, MediaDefaults
from gateway.sources import SourceRules, Sources
from gateway.telemetry import GatewayMetrics
from services.common.cache.open import open_cache
from services.common.checkpoint import Checkpoint
from services.common.errors import InvalidRequest, MediaNotFound
from services.common.keys import Owner
from services.common.media.reader import JOBS_MODULE, MediaReader
from services.common.workers.pool import WorkerPool
from services.common.workers.settings import WorkerSettings
from tests.gateway.conftest import picture

TENANT = "acme"
PATH = "conversation.messages[0].parts[0]"
MakeLoader = Callable[..., MediaLoader]


@pytest.fixture
async def workers() -> AsyncIterator[WorkerPool]:
    async with WorkerPool(JOBS_MODULE, WorkerSettings()) as pool:
        yield pool


@pytest.fixture
def make_loader(model: Checkpoint, workers: WorkerPool) -> MakeLoader:
    caches = [open_cache("memory://", ttl_s=60, max_bytes=1 << 20) for _ in range(2)]
    store = MediaStore(caches[0], caches[1], b"")
    headers = Headers(MediaReader(workers), caches[0], b"")

    def make(
        rules: SourceRules | None = None, limits: Limits | None = None, defaults: MediaDefaults | None = None
    ) -> MediaLoader:
        sources = Sources(rules or SourceRules(max_bytes=1 << 20), store, GatewayMetrics(CollectorRegistry()))
        return MediaLoader(sources, store, headers, model.preprocessor, limits or Limits(), defaults or MediaDefaults())

    return make


def conversation(*media: content.Image | content.Video) -> content.Conversation:
    parts = [content.Part(image=one) if isinstance(one, content.Image) else content.Part(video=one) for one in media]
    return content.Conversation(messages=[content.Message(role=content.ROLE_USER, parts=parts)])


async def load(loader: MediaLoader, *media: content.Image | content.Video) -> list[MediaItem]:
    return await loader.load(conversation(*media), Owner(TENANT))


async def refusal(loader: MediaLoader, *media: content.Image | content.Video) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        await load(loader, *media)
    return {violation.field: violation.reason for violation in caught.value.violations}


@pytest.mark.parametrize(
    "head", ["data:image;base64,", "data:image/png;base64,", "DATA:;base64,", "data:image/x;a=b;BASE64,"]
)
async def test_data_uris(make_loader: MakeLoader, png: bytes, head: str) -> None:
    """Both the model card's spelling and one with a MIME type give the bytes."""
    [item] = await load(make_loader(), content.Image(uri=head + base64.b64encode(png).decode()))
    assert item.files == (png,)
    assert item.digest == "sha256:" + hashlib.sha256(png).hexdigest()
    assert (item.plan.source_height, item.plan.source_width) == (56, 84)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("data:image;base64,not base64!", "MALFORMED"),
        ("data:image;base64,YWJj\n", "MALFORMED"),
        ("data:image;base64,YWJ", "MALFORMED"),
        ("data:image;base64,é", "MALFORMED"),
        ("data:image/png,abc", "MALFORMED"),
        ("data:image/png;base64", "MALFORMED"),
        ("data:image;base64,", "REQUIRED"),
        ("data:video/mp4;base64,YWJj", "WRONG_KIND"),
        ("data:image;base64," + "A" * 3_000_000, "TOO_LARGE"),
        ("ftp://x/y", "UNSUPPORTED_SCHEME"),
        ("/etc/passwd", "UNSUPPORTED_SCHEME"),
        ("file:///etc/passwd", "SCHEME_DISABLED"),
        ("https://example.com/x.png", "SCHEME_DISABLED"),
        ("HTTP://example.com/x.png", "SCHEME_DISABLED"),
    ],
)
async def test_bad_uris(make_loader: MakeLoader, uri: str, reason: str) -> None:
    """Broken, foreign and disabled URIs are refused at `uri`."""
    assert await refusal(make_loader(), content.Image(uri=uri)) == {f"{PATH}.image.uri": reason}


async def test_files_only_under_roots(make_loader: MakeLoader, png: bytes, tmp_path: Path) -> None:
    """A file under a root is read; one outside, also by `..` or a link, is not."""
    root, outside = tmp_path / "root", tmp_path / "outside.png"
    (root / "a b").mkdir(parents=True)
    (root / "a b" / "x.png").write_bytes(png)
    outside.write_bytes(png)
    (root / "link.png").symlink_to(outside)
    (root / "inner.png").symlink_to(root / "a b" / "x.png")
    os.mkfifo(root / "pipe")
    loader = make_loader(SourceRules(1 << 20, (root,)))
    for good in (f"file://{root}/a%20b/x.png", f"file://localhost{root}/inner.png"):
        [item] = await load(loader, content.Image(uri=good))
        assert item.files == (png,)
    bad = {
        f"file://{outside}": "FILE_REFUSED",
        f"file://{root}/../outside.png": "FILE_REFUSED",
        f"file://{root}/%2e%2e/outside.png": "FILE_REFUSED",
        f"file://{root}/link.png": "FILE_REFUSED",
        f"file://{root}/pipe": "FILE_REFUSED",
        f"file://{root}": "FILE_REFUSED",
        f"file://{root}/none.png": "FILE_UNREADABLE",
        f"file://other{root}/a%20b/x.png": "MALFORMED",
        f"file://{root}/x%00.png": "MALFORMED",
        "file:x.png": "MALFORMED",
    }
    for uri, reason in bad.items():
        assert await refusal(loader, content.Image(uri=uri)) == {f"{PATH}.image.uri": reason}, uri


async def test_files_larger_than_the_limit_are_refused(make_loader: MakeLoader, tmp_path: Path) -> None:
    """At most one byte more than the limit is read."""
    (tmp_path / "big").write_bytes(b"x" * 101)
    loader = make_loader(SourceRules(100, (tmp_path,)))
    assert await refusal(loader, content.Image(uri=f"file://{tmp_path}/big")) == {f"{PATH}.image.uri": "TOO_LARGE"}


async def test_digests_name_what_was_sent_before(make_loader: MakeLoader, png: bytes) -> None:
    """Media sent once can be named by its digest, by the same tenant only, until a purge changes its epoch."""
    loader = make_loader()
    [item] = await load(loader, content.Image(data=png))
    await loader.remember([item], Owner(TENANT))
    [again] = await load(loader, content.Image(digest=item.digest))
    assert again.files == (png,)
    for owner in (Owner("globex"), Owner(TENANT, b"later")):
        with pytest.raises(MediaNotFound, match=r"messages\[0\]\.parts\[0\]\.image\.digest"):
            await loader.load(conversation(content.Image(digest=item.digest)), owner)


async def test_naming_a_file_does_not_prolong_its_life(
    make_loader: MakeLoader, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came by its digest is not written again; what is sent again is."""
    loader, written = make_loader(), []
    [item] = await load(loader, content.Image(data=png))
    await loader.remember([item], Owner(TENANT))
    put = MediaStore.put

    async def noted(store: MediaStore, owner: Owner, digest: str, data: bytes) -> bool:
        written.append(digest)
        return await put(store, owner, digest, data)

    monkeypatch.setattr(MediaStore, "put", noted)
    frames = content.FrameList(frames=[content.Frame(digest=item.digest)] * 2)
    await loader.remember(
        await load(loader, content.Image(digest=item.digest), content.Video(frames=frames)), Owner(TENANT)
    )
    assert written == []
    await loader.remember(await load(loader, content.Image(data=png)), Owner(TENANT))
    assert written == [item.digest]


async def test_every_item_is_judged(make_loader: MakeLoader, png: bytes, mp4: bytes) -> None:
    """What is wrong with several items is said in one answer; a video in an image part is wrong."""
    found = await refusal(make_loader(), content.Image(data=b"junk"), content.Image(data=png), content.Image(data=mp4))
    assert set(found) == {"conversation.messages[0].parts[0].image", "conversation.messages[0].parts[2].image"}


async def test_options_that_do_not_fit_the_media(make_loader: MakeLoader, mp4: bytes) -> None:
    """A rule that only the header can tell is broken is said at the option."""
    found = await refusal(make_loader(), content.Video(data=mp4, num_frames=100))
    assert found == {f"{PATH}.video.num_frames": "CANNOT_APPLY"}


async def test_videos_are_planned_from_headers(make_loader: MakeLoader, mp4: bytes) -> None:
    """A container's frames are sampled by the rules; the report says which."""
    [item] = await load(make_loader(), content.Video(data=mp4, fps=3))
    report = item.report()
    assert list(report.frame_indices) == [0, 2, 4, 7, 9, 11]
    assert report.grid.t == 3
    assert report.num_tokens == report.grid.t * report.grid.h * report.grid.w // 4


async def test_lists_of_frames(make_loader: MakeLoader) -> None:
    """All frames are used, the last repeated; `fps` is reported; there is no one digest."""
    frames = [content.Frame(data=picture(56, 56, shade=shade)) for shade in (1, 2, 3)]
    [item] = await load(make_loader(), content.Video(frames=content.FrameList(frames=frames), fps=2.5))
    report = item.report()
    assert list(report.frame_indices) == [0, 1, 2, 2]
    assert (report.digest, report.sampled_fps, len(item.file_digests)) == ("", 2.5, 3)


async def test_frames_of_different_sizes_are_refused_at_the_frame(make_loader: MakeLoader) -> None:
    """The first frame that differs is named."""
    frames = [content.Frame(data=picture(56, 56)), content.Frame(data=picture(56, 84))]
    found = await refusal(make_loader(), content.Video(frames=content.FrameList(frames=frames)))
    assert found == {f"{PATH}.video.frames.frames[1]": "CANNOT_APPLY"}


async def test_the_operators_defaults(make_loader: MakeLoader, mp4: bytes) -> None:
    """The operator's limits hold where a request names none, and give way to an exact size."""
    loader = make_loader(
        limits=Limits(max_video_frames=4), defaults=MediaDefaults(image_max_pixels=56 * 56, video_fps=6)
    )
    big = picture(280, 280)
    [small] = await load(loader, content.Image(data=big))
    assert (small.plan.height, small.plan.width) == (56, 56)
    [exact] = await load(loader, content.Image(data=big, resized_height=84, resized_width=84))
    assert (exact.plan.height, exact.report().max_pixels) == (84, 0)
    [video] = await load(loader, content.Video(data=mp4))
    assert len(video.plan.frame_indices) == 4


async def test_a_requests_media_are_bounded_together(make_loader: MakeLoader, png: bytes) -> None:
    """Many small items may not add up to more than the request's limit."""
    loader = make_loader(limits=Limits(max_request_media_bytes=len(png) + 1))
    found = await refusal(loader, content.Image(data=png), content.Image(data=png))
    assert list(found.values()) == ["TOO_LARGE"]
