"""A conversation and its planned media as the template's turns."""

from collections.abc import Sequence

from diptych.v1 import content_pb2

from .media import MediaItem
from .template import MediaSlot, Turn

_ROLES = {
    content_pb2.ROLE_SYSTEM: "system",
    content_pb2.ROLE_USER: "user",
    content_pb2.ROLE_ASSISTANT: "assistant",
}


def turns_of(conversation: content_pb2.Conversation, items: Sequence[MediaItem]) -> list[Turn]:
    """Turns of text and media slots; `items` are the conversation's media in order."""
    slots = (MediaSlot(item.plan.kind, item.plan.num_tokens) for item in items)
    return [
        Turn(
            _ROLES[message.role],
            tuple(part.text if part.WhichOneof("kind") == "text" else next(slots) for part in message.parts),
        )
        for message in conversation.messages
    ]
