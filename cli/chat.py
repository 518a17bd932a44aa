"""`diptych chat`: one question about pictures and videos, answered as a stream."""

import sys
from dataclasses import dataclass

from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import content_pb2 as content
from diptych.v1 import generation_pb2 as generation
from diptych.v1.chat_service_pb2_grpc import ChatServiceStub
from google.protobuf.json_format import MessageToJson
from rich.console import Console

from cli.client import build_conversation, run_request
from cli.media import Turn

CACHE_WORDS = {
    content.CACHE_RESULT_HIT: "from the cache",
    content.CACHE_RESULT_MISS: "encoded",
    content.CACHE_RESULT_PARTIAL: "partly from the cache",
    content.CACHE_RESULT_UNSPECIFIED: "not looked up",
}


@dataclass(frozen=True, slots=True)
class Options:
    """Generation options; None is the model's own default."""

    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None

    def to_proto(self) -> generation.Generation:
        """The request's options."""
        return generation.Generation(max_tokens=self.max_tokens, temperature=self.temperature, seed=self.seed)


def run(address: str, turn: Turn, options: Options, *, as_json: bool) -> int:
    """Asks, prints the answer on stdout and what it cost on stderr; with `as_json`, each event as a line of JSON."""

    async def ask(stub: ChatServiceStub) -> None:
        conversation = await build_conversation(stub, turn)
        request = chat.StreamChatRequest(conversation=conversation, generation=options.to_proto())
        printer = JsonPrinter() if as_json else TextPrinter()
        async for event in stub.StreamChat(request):
            printer.show(event)

    return run_request(address, ask)


class JsonPrinter:
    """Prints every event as one line of JSON."""

    def show(self, event: chat.StreamChatResponse) -> None:
        """One event, all of its fields by their names in the protocol."""
        print(MessageToJson(event, preserving_proto_field_name=True, indent=None), flush=True)


class TextPrinter:
    """Prints the text as it comes, then one line for each media item and one for the whole."""

    def __init__(self) -> None:
        self.notes = Console(stderr=True, highlight=False)
        self.started = chat.Started()

    def show(self, event: chat.StreamChatResponse) -> None:
        """One event."""
        match event.WhichOneof("event"):
            case "started":
                self.started = event.started
            case "text_delta":
                sys.stdout.write(event.text_delta.text)
                sys.stdout.flush()
            case "finished":
                print(flush=True)
                for line in summary_lines(self.started, event.finished):
                    self.notes.print(line, style="dim", soft_wrap=True)


def summary_lines(started: chat.Started, finished: chat.Finished) -> list[str]:
    """What the request became and what it cost, for people."""
    reports = zip(started.media, finished.media_cache, strict=True)
    lines = [f"{describe_media(report)}, {CACHE_WORDS[result]}" for report, result in reports]
    usage, timings = finished.usage, finished.timings
    ended = ", cut off at the limit" if generation.FINISH_REASON_LENGTH in reasons(finished) else ""
    tokens = f"{usage.num_prompt_tokens} prompt tokens, {usage.num_completion_tokens} generated{ended}"
    times = f"first token after {timings.time_to_first_token_ms:.0f} ms, all after {timings.total_ms:.0f} ms"
    return [*lines, f"{tokens}; {times}"]


def reasons(finished: chat.Finished) -> list[generation.FinishReason]:
    """Why each choice ended."""
    return [end.finish_reason for end in finished.choices]


def describe_media(report: content.MediaReport) -> str:
    """Size and cost of one item: `image 200x300 seen as 196x308, 77 tokens`."""
    kind = "video" if report.kind == content.MEDIA_KIND_VIDEO else "image"
    frames = f", {len(report.frame_indices)} frames" if report.frame_indices else ""
    source = f"{report.source_width}x{report.source_height}"
    return f"{kind} {source} seen as {report.resized_width}x{report.resized_height}{frames}, {report.num_tokens} tokens"
