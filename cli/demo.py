"""`diptych demo`: four processes, questions about real pictures and a video, and a look into the cache."""

import time
from collections import Counter
from typing import TYPE_CHECKING

from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import content_pb2 as content
from diptych.v1 import generation_pb2 as generation
from diptych.v1.chat_service_pb2_grpc import ChatServiceStub
from redis import Redis
from rich.console import Console
from rich.table import Table

from cli.chat import CACHE_WORDS, describe_media
from cli.client import run_request
from cli.questions import Score, to_conversation
from cli.stack import Stack, StackOptions
from cli.up import keep_running, start

if TYPE_CHECKING:
    from models.demo.heldout import Case

MAX_TOKENS = 96
SEED = 3
# Skill, how the question begins, and what a reader should know about its media: the first such held-out case is asked.
QUESTIONS = (
    ("digits", "Which digit", "a handwritten digit, one of scikit-learn's scans"),
    ("shapes", "What is in the picture?", "drawn just now"),
    ("cards", "Read the card", "drawn just now, with a font and a name that training never saw"),
    ("pairs", "Which picture", "two pictures"),
    ("videos", "Which way", "a video, encoded as MP4 just now"),
    ("text", "What can you see?", "nothing to see"),
)
NUM_CANDIDATES = 500


class Demo:
    """Asks, prints, and counts the right answers."""

    def __init__(self, console: Console, stack: Stack) -> None:
        self.console = console
        self.stack = stack
        self.num_asked = self.num_right = 0

    async def ask_all(self, stub: ChatServiceStub) -> None:
        """One question of each kind, then the first again."""
        chosen = [(title, held_out_case(skill, beginning)) for skill, beginning, title in QUESTIONS]
        for title, case in chosen:
            await self.ask(stub, title, case)
        before = self.num_encoded()
        again = await self.ask(stub, "the same digit once more", chosen[0][1])
        if list(again.media_cache) == [content.CACHE_RESULT_HIT] and self.num_encoded() == before:
            counts = f"{before} encodes in its log before and after"
            text = f"The second time, the encoder was not called: {counts}.\n"
            self.console.print(text, highlight=False, soft_wrap=True)
        self.console.print(f"{self.num_right} of {self.num_asked} answers are right.", highlight=False)

    def num_encoded(self) -> int:
        """How often the encoder ran its model, by its own log."""
        return sum(event.get("event") == "encoded" for event in self.stack.children["encoder"].events())

    async def ask(self, stub: ChatServiceStub, title: str, case: "Case") -> chat.Finished:
        """One question: the answer as it comes, whether it is right, and what its media cost."""
        self.console.print(f"[bold]{case.question}[/]  [dim]({title})[/]", highlight=False, soft_wrap=True)
        options = generation.Generation(max_tokens=MAX_TOKENS, temperature=0.0)
        conversation = to_conversation(case, container=True)
        started, finished, answer = chat.Started(), chat.Finished(), ""
        async for event in stub.StreamChat(chat.StreamChatRequest(conversation=conversation, generation=options)):
            if event.HasField("started"):
                started = event.started
            elif event.HasField("text_delta"):
                answer += event.text_delta.text
                self.console.print(event.text_delta.text, end="", markup=False, highlight=False)
            else:
                finished = event.finished
        self.judge(case, answer)
        for report, result in zip(started.media, finished.media_cache, strict=True):
            self.console.print(f"  {describe_media(report)}, {CACHE_WORDS[result]}", style="dim", highlight=False)
        timings = finished.timings
        times = f"first token after {timings.time_to_first_token_ms:.0f} ms, all after {timings.total_ms:.0f} ms"
        self.console.print(f"  {times}\n", style="dim", highlight=False)
        return finished

    def judge(self, case: "Case", answer: str) -> None:
        """Ends the answer's line with a mark, and the right answer where this is not it."""
        score = Score.of(case, answer)
        right = score.num_right == score.num_asked
        self.num_asked += 1
        self.num_right += right
        mark = "   [green]right[/]" if right else "   [red]wrong[/], it is "
        self.console.print(mark, end="", highlight=False)
        self.console.print("" if right else case.answer, markup=False, highlight=False)


def run(model: str) -> int:
    """Runs the demo from start to a clean stop; returns the exit code."""
    console = Console()
    began = time.monotonic()

    def talk(stack: Stack) -> int:
        start(stack, console)
        console.print()
        code = run_request(stack.address, Demo(console, stack).ask_all)
        if code == 0 and stack.redis is not None:
            console.print(cache_table(stack.redis.url))
        return code

    code = keep_running(StackOptions(model), talk)
    console.print(f"Everything is stopped, after {time.monotonic() - began:.0f} s.", highlight=False)
    return code


def held_out_case(skill: str, beginning: str) -> "Case":
    """The first held-out case of a skill whose question begins like this."""
    from models.demo.heldout import cases  # noqa: PLC0415 (in a checkout only, and slow)

    return next(case for case in cases(skill, NUM_CANDIDATES, SEED) if case.question.startswith(beginning))


def cache_table(url: str) -> Table:
    """What the cache holds, by kind of key: `diptych:TENANT:KIND:HEX`."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    with Redis.from_url(url) as client:
        for key in client.scan_iter("diptych:*"):
            kind = key.decode().split(":")[2]
            counts[kind] += 1
            sizes[kind] += client.strlen(key)
    table = Table("in Redis now", "entries", "bytes")
    for kind, count in sorted(counts.items()):
        table.add_row(kind, str(count), f"{sizes[kind]:,}")
    return table
