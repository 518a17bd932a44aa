"""Headers are read once for a tenant: counted by the files that come to the reader."""

import hashlib
from collections.abc import Sequence

import pytest
from diptych.v1 import content_pb2 as content

from gateway.headers import Headers
from services.common.cache.open import open_cache
from services.common.keys import EPOCH_BYTES, Owner
from services.common.media.errors import MediaError
from services.common.media.headers import ImageHeader, VideoHeader
from services.common.media.probe import probe_image, probe_video
from services.common.media.reader import MediaReader
from tests.gateway.client import chat, says
from tests.gateway.conftest import picture
from tests.gateway.fakes import Stage

ACME = Owner("acme")


class CountingReader(MediaReader):
    """Reads in this process, and counts files."""

    def __init__(self) -> None:
        self.num_read = 0

    async def probe_images(self, files: Sequence[bytes], *, key: bytes) -> list[ImageHeader]:  # noqa: ARG002
        self.num_read += len(files)
        return [probe_image(file) for file in files]

    async def probe_video(self, data: bytes, *, key: bytes) -> VideoHeader:  # noqa: ARG002
        self.num_read += 1
        return probe_video(data)


@pytest.fixture
def reader() -> CountingReader:
    return CountingReader()


@pytest.fixture
def headers(reader: CountingReader) -> Headers:
    return Headers(reader, open_cache("memory://", ttl_s=60, max_bytes=1 << 20), b"secret")


async def images(headers: Headers, *files: bytes, owner: Owner = ACME) -> list[ImageHeader]:
    """What a request finds that keeps what is new."""
    found = await headers.images(files, [hashlib.sha256(file).digest() for file in files], owner)
    await headers.keep(found.new, owner)
    return found.headers


async def test_a_picture_is_read_once(headers: Headers, reader: CountingReader, png: bytes) -> None:
    """The second answer is the first one's; a list with one unknown picture is read whole."""
    assert await images(headers, png) == await images(headers, png) == [probe_image(png)]
    assert reader.num_read == 1
    other = picture(84, 84)
    assert await images(headers, png, other) == [probe_image(png), probe_image(other)]
    assert reader.num_read == 3


async def test_a_video_is_read_once(headers: Headers, reader: CountingReader, mp4: bytes) -> None:
    """The same bytes sent as a picture are read as one, and refused."""
    digest = hashlib.sha256(mp4).digest()
    for _ in range(2):
        found = await headers.video(mp4, digest, ACME)
        assert found.headers == [probe_video(mp4)]
        await headers.keep(found.new, ACME)
    assert reader.num_read == 1
    with pytest.raises(MediaError):
        await images(headers, mp4)


async def test_tenants_share_no_headers(headers: Headers, reader: CountingReader, png: bytes) -> None:
    """What one has sent is read for another as if nobody had; nor is it found from before a purge."""
    for owner in (ACME, Owner("globex"), Owner(ACME.tenant, bytes(EPOCH_BYTES))):
        await images(headers, png, owner=owner)
    assert reader.num_read == 3


async def test_what_is_over_the_quota_is_read_again(headers: Headers, reader: CountingReader, png: bytes) -> None:
    """Nothing is kept then, and nothing else changes."""
    for _ in range(2):
        await images(headers, png, owner=Owner("acme", max_cache_bytes=1))
    assert reader.num_read == 2


@pytest.mark.parametrize("no_store", [False, True])
async def test_no_store_leaves_no_headers(stage: Stage, png: bytes, *, no_store: bool) -> None:
    """What a request without it has read is found by the next one, and nothing of one with it."""
    conversation = says(content.Image(data=png))
    conversation.no_store = no_store
    await chat(stage, conversation)
    found = await stage.rooms.media.load(conversation, Owner("default"))
    assert bool(found[0].new_headers) == no_store
