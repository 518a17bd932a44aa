"""Headers are read once for a tenant: counted by the files that come to the reader."""

import hashlib
from collections.abc import Sequence

import pytest

from gateway.headers import Headers
from services.common.cache.open import open_cache
from services.common.keys import EPOCH_BYTES, Owner
from services.common.media.errors import MediaError
from services.common.media.headers import ImageHeader, VideoHeader
from services.common.media.probe import probe_image, probe_video
from services.common.media.reader import MediaReader
from tests.gateway.conftest import picture

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


async def images(headers: Headers, *files: bytes, owner: Owner = ACME, no_store: bool = False) -> list[ImageHeader]:
    digests = [hashlib.sha256(file).digest() for file in files]
    return await headers.images(files, digests, owner, no_store=no_store)


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
    read = [await headers.video(mp4, digest, ACME, no_store=False) for _ in range(2)]
    assert read == [probe_video(mp4)] * 2
    assert reader.num_read == 1
    with pytest.raises(MediaError):
        await images(headers, mp4)


async def test_tenants_share_nothing(headers: Headers, reader: CountingReader, png: bytes) -> None:
    """What one has sent is read for another as if nobody had."""
    await images(headers, png)
    await images(headers, png, owner=Owner("globex"))
    assert reader.num_read == 2


async def test_no_store_reads_and_leaves_nothing(headers: Headers, reader: CountingReader, png: bytes) -> None:
    """It is read each time, unless it was kept before."""
    for _ in range(2):
        await images(headers, png, no_store=True)
    await images(headers, png)
    assert reader.num_read == 3
    await images(headers, png, no_store=True)
    assert reader.num_read == 3


async def test_a_purge_forgets_a_tenants_files(headers: Headers, reader: CountingReader, png: bytes) -> None:
    """And what a request that began before it has read; another tenant's are kept."""
    other, purged = Owner("globex"), Owner(ACME.tenant, bytes(EPOCH_BYTES))
    for owner in (ACME, other):
        await images(headers, png, owner=owner)
    assert (await headers.purge(purged)).num_values == 1
    for owner in (ACME, purged, other):
        await images(headers, png, owner=owner)
    assert reader.num_read == 4
    assert (await headers.purge(purged)).num_values == 1  # the one of `purged` itself


async def test_headers_are_bounded(reader: CountingReader, png: bytes) -> None:
    """The least recently used go first."""
    headers = Headers(reader, open_cache("memory://", ttl_s=60, max_bytes=200), b"secret")
    await images(headers, png)
    for side in (56, 84, 112):
        await images(headers, picture(side, side))
    await images(headers, png)
    assert reader.num_read == 5
