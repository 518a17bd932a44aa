"""`diptych eval`: the held-out table of the small checkpoint, measured through a running gateway."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import generation_pb2 as generation
from diptych.v1.chat_service_pb2_grpc import ChatServiceStub
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from cli.client import run_request
from cli.questions import Score, to_conversation
from cli.stack import Stack, StackOptions
from cli.up import keep_running, start

if TYPE_CHECKING:
    from models.demo.heldout import Case

CONCURRENCY = 8
MAX_TOKENS = 96
# Skill: share that must be right, and of what.
BARS = {
    "shapes": (0.95, "answers"),
    "cards": (0.90, "fields"),
    "digits": (0.90, "answers"),
    "videos": (0.95, "answers"),
    "pairs": (0.95, "answers"),
    "text": (0.95, "answers"),
}


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure."""

    model: str
    address: str | None
    count: int
    seed: int
    markdown: Path | None


@dataclass(frozen=True, slots=True)
class Result:
    """One skill's outcome; `num_asked` are answers, or fields of cards."""

    skill: str
    num_cases: int
    num_right: int
    num_asked: int

    @property
    def accuracy(self) -> float:
        """The share that is right."""
        return self.num_right / self.num_asked

    @property
    def holds(self) -> bool:
        """Whether the skill reaches its bar."""
        return self.accuracy >= BARS[self.skill][0]


def run(options: Options, *, as_json: bool) -> int:
    """Measures every skill and prints the table; 1 when the gateway fails, whatever the accuracy."""
    if options.address is not None:
        return measure_at(options.address, options, as_json=as_json)

    def work(stack: Stack) -> int:
        start(stack, Console(stderr=True, highlight=False))
        return measure_at(stack.address, options, as_json=as_json)

    return keep_running(StackOptions(options.model), work)


def measure_at(address: str, options: Options, *, as_json: bool) -> int:
    """Measures the gateway at `address`; returns the exit code."""
    results: list[Result] = []
    code = run_request(address, lambda stub: measure_all(stub, options, results))
    if code == 0:
        show(results, options.markdown, as_json=as_json)
    return code


async def measure_all(stub: ChatServiceStub, options: Options, results: list[Result]) -> None:
    """Appends each skill's result, with progress on stderr."""
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=options.count * len(BARS))
        for skill in BARS:
            progress.update(task, description=skill)
            results.append(await measure(stub, skill, options, lambda: progress.advance(task)))


async def measure(stub: ChatServiceStub, skill: str, options: Options, on_answer: Callable[[], None]) -> Result:
    """Asks the held-out cases of one skill, a few at a time."""
    from models.demo.heldout import cases  # noqa: PLC0415 (in a checkout only, and slow)

    gate = asyncio.Semaphore(CONCURRENCY)

    async def score(case: "Case") -> Score:
        async with gate:
            answer = await ask(stub, case)
            on_answer()
            return Score.of(case, answer)

    scores = await asyncio.gather(*(score(case) for case in cases(skill, options.count, options.seed)))
    right, asked = sum(score.num_right for score in scores), sum(score.num_asked for score in scores)
    return Result(skill, len(scores), right, asked)


async def ask(stub: ChatServiceStub, case: "Case") -> str:
    """The greedy answer."""
    options = generation.Generation(max_tokens=MAX_TOKENS, temperature=0.0)
    request = chat.ChatRequest(conversation=to_conversation(case), generation=options)
    answer: chat.ChatResponse = await stub.Chat(request)
    return answer.choices[0].text


def show(results: Sequence[Result], markdown: Path | None, *, as_json: bool) -> None:
    """Prints the table, and writes it to `markdown` if that is given."""
    if markdown is not None:
        markdown.write_text(markdown_table(results))
    if as_json:
        rows = [{"skill": r.skill, "num_cases": r.num_cases, "accuracy": r.accuracy, "holds": r.holds} for r in results]
        print(json.dumps(rows))
        return
    table = Table("skill", "cases", "right", "bar")
    for result in results:
        table.add_row(*columns(result), style=None if result.holds else "red")
    Console(highlight=False).print(table)


def markdown_table(results: Sequence[Result]) -> str:
    """The table for a model card."""
    lines = ["| skill | cases | right | bar |", "| --- | --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {' | '.join(columns(result))} |" for result in results)]) + "\n"


def columns(result: Result) -> tuple[str, str, str, str]:
    """One row."""
    bar, unit = BARS[result.skill]
    return result.skill, str(result.num_cases), f"{result.accuracy:.1%} of {unit}", f"{bar:.0%}"
