"""What a conversation's requests have in common, so that they find the same decoder and the keys and values there."""

from collections.abc import Iterator, Sequence
from hashlib import blake2b

from diptych.v1 import content_pb2

from .media import MediaItem


def prefix_key(conversation: content_pb2.Conversation, items: Sequence[MediaItem], tenant: str) -> bytes:
    """A hash of the prompt's beginning: up to the first media item, which is most of what can be shared, or else up to
    the end of the first user turn. `items` are the conversation's media in order."""
    state = blake2b(digest_size=16)
    for piece in (tenant.encode(), *_beginning(conversation, items)):
        state.update(len(piece).to_bytes(8, "little") + piece)
    return state.digest()


def _beginning(conversation: content_pb2.Conversation, items: Sequence[MediaItem]) -> Iterator[bytes]:
    for message in conversation.messages:
        yield bytes([message.role])
        for part in message.parts:
            if part.WhichOneof("kind") != "text":
                yield b"".join(items[0].file_digests)
                return
            yield part.text.encode()
        if message.role == content_pb2.ROLE_USER:
            return
