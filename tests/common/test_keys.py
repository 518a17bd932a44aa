"""Cache keys."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.keys import CacheProfile, digest_of, media_key, slice_key, tenant_key, upload_key

PROFILE = CacheProfile("sha256:v", "float32", "1-abc")
KEY = tenant_key(b"secret", "acme")
DIGESTS = st.lists(st.binary(min_size=0, max_size=4), max_size=4)
INDICES = st.lists(st.integers(0, 1000), max_size=4)
MEDIA = st.tuples(
    st.sampled_from(["image", "video"]), DIGESTS, st.integers(0, 1 << 40), st.integers(0, 1 << 40), INDICES
)


@given(MEDIA, MEDIA)
def test_different_media_have_different_keys(one: Any, other: Any) -> None:
    """Two media keys are equal only when every field is: no two lists of fields read the same."""
    keys = [media_key(*(KEY, *fields, PROFILE)) for fields in (one, other)]
    assert (keys[0] == keys[1]) == (one == other)


@pytest.mark.parametrize("change", [{"vision_digest": "x"}, {"dtype": "float16"}, {"preprocessing": "2"}])
def test_the_profile_is_part_of_every_key(change: dict[str, str]) -> None:
    """Other weights, arithmetic or preprocessing never find each other's embeddings."""
    other = replace(PROFILE, **change)
    assert media_key(KEY, "image", [b"d"], 28, 28, [], PROFILE) != media_key(KEY, "image", [b"d"], 28, 28, [], other)
    assert slice_key(KEY, b"d", 28, 28, PROFILE) != slice_key(KEY, b"d", 28, 28, other)


@given(st.text(max_size=8), st.text(max_size=8), st.binary(max_size=4), st.binary(max_size=4))
def test_tenants_share_nothing(one: str, other: str, secret: bytes, other_secret: bytes) -> None:
    """Another tenant or another secret is another key."""
    same = (one, secret) == (other, other_secret)
    if secret.rstrip(b"\0") == other_secret.rstrip(b"\0") and secret != other_secret:
        return  # HMAC pads a key with zeros: RFC 2104
    assert (tenant_key(secret, one) == tenant_key(other_secret, other)) == same


def test_kinds_of_keys_never_meet() -> None:
    """A slice, a manifest and an upload of like fields have keys of their own."""
    keys = {
        slice_key(KEY, b"d", 28, 28, PROFILE),
        media_key(KEY, "image", [b"d"], 28, 28, [], PROFILE),
        upload_key(KEY, "d"),
    }
    assert len(keys) == 3
    assert all(len(key) == 32 for key in keys)


def test_keys_stay_what_they_are() -> None:
    """A release that changes a key without a new SCHEMA would read another's values."""
    assert slice_key(KEY, b"d", 28, 56, PROFILE).hex()[:16] == "01c59175d4794eaa"
    assert digest_of(b"") == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
