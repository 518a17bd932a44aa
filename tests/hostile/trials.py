"""Everything that is tried, each with the service that it is tried on."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from diptych.v1.chat_service_pb2_grpc import ChatServiceStub
from diptych.v1.decoder_service_pb2_grpc import DecoderServiceStub
from diptych.v1.encoder_service_pb2_grpc import EncoderServiceStub

from tests.hostile import lies
from tests.hostile.carriers import ENCODE, Sender
from tests.hostile.files import Entry, try_chat, try_encode
from tests.hostile.lies import Lie
from tests.hostile.outcome import Outcome

Trial = tuple[str, Callable[[], Awaitable[Outcome]]]
"""What it is, and how to do it."""


@dataclass(frozen=True)
class Doors:
    """A stub of each service."""

    sender: Sender
    chats: ChatServiceStub
    encodes: EncoderServiceStub
    generates: DecoderServiceStub


def file_trial(doors: Doors, entry: Entry) -> Trial:
    """One file by one way."""
    if entry.way == ENCODE:
        return str(entry), lambda: try_encode(doors.encodes, entry)
    return str(entry), lambda: try_chat(doors.sender, doors.chats, entry)


async def lie_trials(doors: Doors) -> list[Trial]:
    """Everything that encoder and decoder are told wrongly."""
    sound = await lies.sound_prompt(doors.chats)

    def header(lie: Lie, name: str) -> Trial:
        return f"a header's {name}", lambda: lies.try_header(doors.encodes, lie, name)

    def prompt(lie: Lie, path: str) -> Trial:
        return f"a decoder's {path}", lambda: lies.try_prompt(doors.generates, sound, lie, path)

    def chunk(number: int) -> Trial:
        return f"rows {number}", lambda: lies.try_chunk(doors.generates, sound, *lies.CHUNKS[number])

    return [
        *(header(*lie) for lie in lies.HEADERS),
        *(prompt(*lie) for lie in lies.PROMPTS),
        *(chunk(number) for number in range(len(lies.CHUNKS))),
    ]
