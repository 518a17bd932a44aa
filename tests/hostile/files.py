"""A hostile file through one way in: each media source, each RPC that takes media, and the encoder itself."""

from dataclasses import dataclass
from typing import Final

import grpc
from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import content_pb2 as content
from diptych.v1 import generation_pb2 as generation
from diptych.v1.chat_service_pb2_grpc import ChatServiceStub
from diptych.v1.encoder_service_pb2_grpc import EncoderServiceStub

from tests.harness import Failure, collect, failure, failure_of
from tests.hostile import images, videos
from tests.hostile.carriers import ENCODE, FRAMES, SOURCES, Kind, Sender, encode_header, encode_messages
from tests.hostile.case import Case
from tests.hostile.outcome import Attempt, Outcome, blames

STREAM: Final = "StreamChat"
# what only reads headers may answer about a file whose pixels nobody can decode
ANSWER_BY_HEADERS: Final = ("CountTokens", "Explain")
RPCS: Final = ("Chat", "BatchChat", *ANSWER_BY_HEADERS)
PART = "conversation.messages[0].parts[0]"
_CALL_S = 60.0
_SHORT = generation.Generation(max_tokens=2, ignore_eos=True)


@dataclass(frozen=True, slots=True)
class Entry:
    """One file and one way: a source or FRAMES (by StreamChat), one of RPCS (with the bytes inside), or ENCODE."""

    kind: Kind
    case: Case
    way: str

    def __str__(self) -> str:
        return f"{self.case.name} by {self.way}"


class BatchItemFailed(Exception):  # noqa: N818 -- an answer
    """What became of a batch's item."""

    def __init__(self, failed: Failure) -> None:
        super().__init__()
        self.failed = failed


def entries(trap_url: str) -> list[Entry]:
    """Every file through every way in that it can take. Nothing may connect to `trap_url`."""
    pictures = [Entry("image", case, way) for case in images.image_cases() for way in (*SOURCES, FRAMES, *RPCS, ENCODE)]
    films = [Entry("video", case, way) for case in videos.video_cases(trap_url) for way in (*SOURCES, *RPCS, ENCODE)]
    return [entry for entry in (*pictures, *films) if not (entry.case.only_gateway and entry.way == ENCODE)]


def sound_entries() -> list[Entry]:
    """A sound picture and a sound video by every way."""
    sound = {"image": images.PNG, "video": videos.MP4}
    ways = (*SOURCES, *RPCS, ENCODE)
    return [
        *(Entry(kind, Case("sound", data, None), way) for kind, data in sound.items() for way in ways),  # type: ignore[arg-type]
        Entry("image", Case("sound", images.PNG, None), FRAMES),
    ]


async def try_chat(sender: Sender, stub: ChatServiceStub, entry: Entry) -> Outcome:
    """How the gateway takes a file."""
    kind, case, way = entry.kind, entry.case, entry.way
    attempt = Attempt()
    attempt.begins()
    try:
        part = await sender.part(stub, kind, case.data, "data" if way in RPCS else way)
        attempt.begins()  # sending a file to be named later is a call of its own
        tokens = await answer(stub, part, way)
    except (grpc.aio.AioRpcError, BatchItemFailed) as error:
        failed = error.failed if isinstance(error, BatchItemFailed) else failure(error)
        path = PART if case.data or way != "digest" else ""
        return attempt.refused(failed, lambda failed: blames(failed, case.reason, path))
    if case.reason is not None:
        return Outcome(problem=None if way in ANSWER_BY_HEADERS else "answered")
    if kind == "image" and way not in (FRAMES, *ANSWER_BY_HEADERS):
        expected = await answer(stub, content.Part(image=content.Image(data=images.plain(case.data))))
        return Outcome(problem=None if tokens == expected else f"{tokens} for {expected}")
    return Outcome()


async def answer(stub: ChatServiceStub, part: content.Part, way: str = STREAM) -> list[int]:
    """The first tokens about a file; none from an RPC that gives none."""
    conversation = content.Conversation(messages=[content.Message(role=content.ROLE_USER, parts=[part])])
    match way:
        case "Chat":
            response = await stub.Chat(chat.ChatRequest(conversation=conversation, generation=_SHORT), timeout=_CALL_S)
            return list(response.choices[0].end.token_ids)
        case "BatchChat":
            return await _answer_in_batch(stub, conversation)
        case "CountTokens":
            await stub.CountTokens(chat.CountTokensRequest(conversation=conversation), timeout=_CALL_S)
            return []
        case "Explain":
            await stub.Explain(chat.ExplainRequest(conversation=conversation), timeout=_CALL_S)
            return []
    request = chat.StreamChatRequest(conversation=conversation, generation=_SHORT)
    return (await collect(stub.StreamChat(request, timeout=_CALL_S))).token_ids


async def _answer_in_batch(stub: ChatServiceStub, conversation: content.Conversation) -> list[int]:
    request = chat.BatchChatRequest(items=[chat.BatchChatItem(conversation=conversation, generation=_SHORT)])
    async for event in stub.BatchChat(request, timeout=_CALL_S):
        if event.HasField("failed"):
            raise BatchItemFailed(failure_of(event.failed))
        if event.HasField("finished"):
            return list(event.finished.choices[0].token_ids)
    raise AssertionError("a batch ended without its item's end")


async def try_encode(stub: EncoderServiceStub, entry: Entry) -> Outcome:
    """How the encoder takes a file. It decodes what it is asked for: the gateway's rules on shape, and on frames that
    nobody asks for, are not its own.
    """
    kind, case = entry.kind, entry.case
    attempt = Attempt()
    attempt.begins()
    try:
        async for _ in stub.Encode(encode_messages(encode_header(kind, case.data), case.data), timeout=_CALL_S):
            pass
    except grpc.aio.AioRpcError as error:
        expected = failure(error).reason if kind == "video" else case.reason
        return attempt.refused(failure(error), lambda failed: blames(failed, expected, "chunk"))
    may_encode = kind == "video" or case.reason in (None, "CANNOT_APPLY")
    return Outcome(problem=None if may_encode else "encoded")
