"""Pictures and videos as the command line names them, in the order given there."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import typer
from typer.core import TyperCommand

MEDIA_ORDER = "diptych.media_order"
MAX_INLINE_BYTES = 3 << 20  # what any proxy lets through beside the text: gRPC's default is 4 MiB


class OrderedMedia(TyperCommand):
    """A command that remembers how --image and --video alternate: each option alone only knows its own order."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Parses twice: once for the order of the media, once as usual."""
        if args:
            _, _, parameters = self.make_parser(ctx).parse_args(args=list(args))
            ctx.meta[MEDIA_ORDER] = [item.name for item in parameters if item.name in {"image", "video"}]
        return super().parse_args(ctx, args)


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """Pixels that each picture or frame may have; None is the operator's default."""

    min_pixels: int | None = None
    max_pixels: int | None = None


@dataclass(frozen=True, slots=True)
class Media:
    """One picture or video: bytes read from a file, or a URI or digest that the gateway resolves."""

    kind: Literal["image", "video"]
    name: str
    limits: MediaLimits
    data: bytes | None = None

    @classmethod
    def in_order(
        cls, context: typer.Context, images: Sequence[str] | None, videos: Sequence[str] | None, limits: MediaLimits
    ) -> list["Media"]:
        """All media as the command line had them. Raises typer.BadParameter for a file that cannot be read."""
        names = {"image": iter(images or ()), "video": iter(videos or ())}
        return [cls.read(kind, next(names[kind]), limits) for kind in context.meta[MEDIA_ORDER]]

    @classmethod
    def read(cls, kind: Literal["image", "video"], name: str, limits: MediaLimits) -> "Media":
        """One item: `sha256:...` and URIs are passed on as they are, anything else is a file."""
        if name.startswith(("sha256:", "data:")) or "://" in name:
            return cls(kind, name, limits)
        try:
            return cls(kind, name, limits, Path(name).read_bytes())
        except OSError as error:
            raise typer.BadParameter(f"{name}: {error.strerror}", param_hint=f"--{kind}") from error


@dataclass(frozen=True, slots=True)
class Turn:
    """What the command line asks: media in order, then the question, after instructions if there are any.

    With `no_store` nothing of it is kept.
    """

    question: str
    media: Sequence[Media]
    system: str | None = None
    no_store: bool = False

    @property
    def is_inline(self) -> bool:
        """Whether files go in the request: an upload is for keeping them."""
        return self.no_store or sum(len(item.data or b"") for item in self.media) <= MAX_INLINE_BYTES
