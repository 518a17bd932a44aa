"""What is asked during the faults, and the only right answer to each question, computed beforehand."""

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from diptych.v1 import content_pb2 as content

from tests.exactness import cases
from tests.exactness.cases import Case, Clip, Frames, Picture
from tests.exactness.reference import Reference
from tests.faults.fleet import TENANTS

PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
SHARED_SEED = 7  # of the picture that both tenants send


@dataclass(frozen=True)
class Question:
    """One tenant's conversation with its greedy answer, by transformers."""

    tenant: str
    case: Case
    max_tokens: int
    token_ids: tuple[int, ...]
    text: str

    @property
    def has_media(self) -> bool:
        return bool(self.case.media)

    def to_conversation(self, nonce: bytes = b"") -> content.Conversation:
        """With a `nonce`, its pictures are new files of the same pixels, with the same answer."""
        conversation = self.case.to_conversation()
        if nonce:
            for message in conversation.messages:
                for part in message.parts:
                    if part.WhichOneof("kind") == "image":
                        part.image.data = with_comment(part.image.data, nonce)
        return conversation


def with_comment(png: bytes, comment: bytes) -> bytes:
    """The same picture as another file: a tEXt chunk (PNG specification, 11.3.3.2) before the end."""
    body = b"tEXtComment\0" + comment
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return png.removesuffix(PNG_END) + chunk + PNG_END


def questions(model: Path, per_tenant: int) -> list[Question]:
    """`per_tenant` questions of each tenant, no two tenants' alike, and no two answers of different questions alike."""
    reference = Reference(model)
    return list(_distinct(reference, per_tenant))


def _distinct(reference: Reference, per_tenant: int) -> Iterator[Question]:
    seen: set[tuple[int, ...]] = set()
    for number, tenant in enumerate(TENANTS):
        found = 0
        for case, max_tokens in _cases(random.Random(number), tenant, 1000 * (number + 1)):
            ids = tuple(reference.generate(case, max_tokens)[1])
            if len(ids) < 3 or ids in seen:
                continue
            seen.add(ids)
            text = reference.tokenizer.decode(list(ids), skip_special_tokens=True)
            yield Question(tenant, case, max_tokens, ids, text)
            found += 1
            if found == per_tenant:
                break


def _cases(rng: random.Random, tenant: str, seed: int) -> Iterator[tuple[Case, int]]:
    """Texts of mixed lengths, one picture or several, frames and container files, without end."""
    while True:
        seed += 10
        words = f"{tenant} {seed} " + "what is this? " * rng.randint(1, 12)
        media: list[Picture | Clip | Frames] = []
        match rng.choice(("text", "image", "image", "images", "frames", "clip")):
            case "image":
                media = [cases.picture(seed)]
            case "images":
                media = [cases.picture(seed + i) for i in range(rng.randint(2, 3))]
            case "frames":
                media = [cases.frame_list(seed, 4)]
            case "clip":
                media = [cases.clip(seed, 8)]
        yield cases.user(f"{tenant} {seed}", *media, words), rng.choice((6, 12, 24))


def shared_picture(tenant: str) -> Case:
    """The same bytes for every tenant, which must not meet in the cache."""
    return cases.user(f"shared, {tenant}", cases.picture(SHARED_SEED), "What is this?")
