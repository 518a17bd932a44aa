"""What a cache's URL says."""

import pytest

from services.common.cache import open_cache
from services.common.cache_url import parse_cache_url


@pytest.mark.parametrize(
    ("url", "kind", "plain", "addresses"),
    [
        ("memory://", "memory", "memory://", ()),
        ("rediss://u:p@host:1/2", "server", "rediss://u:p@host:1/2", ()),
        ("redis+sentinel://u:p@a:1,b/name/3", "sentinel", "redis://u:p@a:1/3", (("a", 1), ("b", 26379))),
        ("rediss+cluster://[::1],b:2?ssl_ca_certs=x", "cluster", "rediss://[::1]:6379?ssl_ca_certs=x", None),
    ],
)
def test_what_a_url_says(url: str, kind: str, plain: str, addresses: tuple[tuple[str, int], ...] | None) -> None:
    """Kind, credentials, options and each address."""
    parsed = parse_cache_url(url)
    assert (parsed.kind, parsed.plain) == (kind, plain)
    assert parsed.addresses == ((("::1", 6379), ("b", 2)) if addresses is None else addresses)


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://host",
        "redis+sentinel://a:b/s",
        "redis+cluster://a/1",
        "redis+cluster://a,",
        "redis+sentinel://a/s/x",
    ],
)
def test_half_a_url_is_refused(url: str) -> None:
    """What a URL leaves out or gets wrong is an error at the start."""
    with pytest.raises(ValueError, match=r"host:port|database|service"):
        parse_cache_url(url)


@pytest.mark.parametrize("url", ["http://localhost", "localhost:6379", ""])
def test_other_urls_are_refused(url: str) -> None:
    """A URL that names no backend is an error at the start."""
    with pytest.raises(ValueError, match="redis://"):
        open_cache(url, ttl_s=1, max_bytes=1)
