"""`make exactness`: every case on every checkpoint in every condition against transformers.

Writes docs/exactness-results.md; ends with 1 when anything differs, or when little memory preempted nobody.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from diptych.v1 import chat_service_pb2 as chat

from services.common.keys import digest_of
from tests.checkpoints import CheckpointSpec, build_checkpoint
from tests.exactness import checks, report
from tests.exactness.cases import Case, all_cases
from tests.exactness.checks import Expected, Mismatch
from tests.exactness.files import file_cases
from tests.exactness.fleet import Condition, Node, fleet
from tests.exactness.reference import Reference
from tests.harness import gateway

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "exactness-results.md"
DEMO = ROOT / "models" / "demo"
EMBEDDING_BAR = 1e-4
ALTERNATIVES = 20

# Each differs from the published shape in ways that have broken servers before.
CHECKPOINTS = {
    "flat config, tied, bf16 file": CheckpointSpec(dtype="bfloat16", seed=1),
    "nested config, untied, 3 shards, one KV head, 3 vision layers": CheckpointSpec(
        layout="nested", weight_names="new", tied=False, num_shards=3, kv_heads=1, vision_depth=3, seed=2
    ),
    "all heads KV, patches of 16, merged 1x1": CheckpointSpec(
        kv_heads=4, patch_size=16, merge_size=1, min_pixels=4 * 256, max_pixels=1 << 22, seed=3
    ),
    "fp16 file, patches of 8, merged 3x3, own video limits": CheckpointSpec(
        dtype="float16",
        patch_size=8,
        merge_size=3,
        min_pixels=4 * 576,
        max_pixels=1 << 22,
        video_preprocessor=True,
        seed=4,
    ),
}

LONG_ANSWERS = {"text: plain", "image: 84x112", "video: 9 frames", "mixed: image, video"}


@dataclass
class Tally:
    """How many of a check's comparisons were equal, and which were not."""

    total: int
    mismatches: list[Mismatch] = field(default_factory=list)

    @property
    def equal(self) -> int:
        return self.total - len({mismatch.case for mismatch in self.mismatches})


@dataclass
class Result:
    """All that was found for one checkpoint."""

    checkpoint: str
    tallies: dict[str, Tally] = field(default_factory=dict)
    embedding_error: float = 0.0
    embeddings: Tally = field(default_factory=lambda: Tally(0))
    cached_identical: Tally = field(default_factory=lambda: Tally(0))
    preemptions: int = 0
    deviations: list[str] = field(default_factory=list)
    precision: dict[str, tuple[float, float, int]] = field(default_factory=dict)


def main() -> int:
    """Runs the matrix; 1 when anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="only each Nth case")
    parser.add_argument("--checkpoints", type=int, default=len(CHECKPOINTS), help="only the first N random checkpoints")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = [*all_cases(), *file_cases()][:: options.every]
    started, results = time.monotonic(), []
    with tempfile.TemporaryDirectory() as scratch:
        for number, (name, spec) in enumerate(list(CHECKPOINTS.items())[: options.checkpoints]):
            folder = build_checkpoint(Path(scratch) / str(number), spec)
            results.append(measure(name, folder, Path(scratch) / f"logs{number}", cases))
        if (DEMO / "config.json").exists():
            results.append(measure("models/demo", DEMO, Path(scratch) / "logs-demo", cases))
    options.out.write_text(report.render(results, time.monotonic() - started), encoding="utf-8")
    for result in results:
        for check, tally in result.tallies.items():
            for mismatch in tally.mismatches[:5]:
                print(f"  {result.checkpoint} | {check} | {mismatch.case}: {mismatch.what}")
    return 0 if all(report.is_exact(result) for result in results) else 1


def measure(name: str, folder: Path, logs: Path, cases: Sequence[Case]) -> Result:
    """One checkpoint in all conditions."""
    print(f"{name}: {len(cases)} cases", flush=True)
    reference, result = Reference(folder), Result(name)
    expected = [expect(reference, case) for case in cases]
    long = [
        expect(reference, case, checks.NUM_LONG_TOKENS, checks.NUM_LONG_TOKENS)
        for case in all_cases()
        if case.name in LONG_ANSWERS
    ]
    result.deviations = [one.case.name for one in expected if one.own_positions_differ]
    with fleet(folder, logs) as nodes:
        asyncio.run(_in_conditions(nodes, expected, long, result))
        asyncio.run(_embeddings(nodes["whole prompts"], reference, expected, result))
    for dtype in ("bfloat16", "float16"):
        with fleet(folder, logs / dtype, dtype, (Condition("whole prompts"),)) as nodes:
            result.precision[dtype] = asyncio.run(
                _precision(nodes["whole prompts"], Reference(folder, getattr(torch, dtype)), cases[::7])
            )
    return result


def expect(reference: Reference, case: Case, max_tokens: int = checks.NUM_TOKENS, min_tokens: int = 0) -> Expected:
    """The reference's answer to a case."""
    prompt, ids = reference.generate(case, max_tokens, min_tokens)
    differ = bool(prompt.media) and not np.array_equal(reference.own_positions(case, prompt), prompt.positions)
    return Expected(case, prompt, ids, differ)


async def _in_conditions(
    nodes: dict[str, Node], expected: Sequence[Expected], long: Sequence[Expected], result: Result
) -> None:
    async def tally(name: str, check: Awaitable[list[Mismatch]], total: int = len(expected)) -> None:
        begun = time.monotonic()
        result.tallies[name] = Tally(total, await check)
        now = result.tallies[name]
        print(f"  {name}: {now.equal} of {now.total} equal, {time.monotonic() - begun:.0f} s", flush=True)

    whole, little, least = (nodes[name] for name in ("whole prompts", "little KV memory", "hardly any KV memory"))
    await tally("counted by headers", checks.counted(whole, expected))
    await tally("alone, caches cold", checks.alone(whole, expected))
    await tally("alone, caches warm", checks.alone(whole, expected))
    await tally("explained", checks.explained(whole, expected))
    await tally("all in one batch", checks.together(whole, expected))
    await tally("without Redis, alone", checks.alone(nodes["without Redis"], expected))
    await tally("without Redis, batch", checks.together(nodes["without Redis"], expected))
    for size in (1, 7, 64):
        await tally(f"chunks of {size}, batch", checks.together(nodes[f"chunks of {size}"], expected))
    await tally("little KV memory, batch", checks.together(little, expected))
    await tally(f"preempted, answers of {checks.NUM_LONG_TOKENS}", checks.outgrowing(least, long), len(long))
    result.preemptions = sum([await checks.preemptions(node) for node in (little, least)])


async def _embeddings(node: Node, reference: Reference, expected: Sequence[Expected], result: Result) -> None:
    """Rows against the reference's tower, and a second time against the first, bit for bit."""
    async with gateway(node.gateway) as stub:
        for one in expected:
            if not one.prompt.media:
                continue
            request = chat.CountTokensRequest(conversation=one.case.to_conversation())
            count = await stub.CountTokens(request)
            for place, (item, plan) in enumerate(zip(one.case.media, count.media, strict=True)):
                name = f"{one.case.name}, item {place}"
                key = bytes.fromhex(digest_of(f"{result.checkpoint} {name}".encode()).removeprefix("sha256:"))
                fresh = await checks.encode(node, item, plan, key)
                again = await checks.encode(node, item, plan, key)
                error = float(np.abs(fresh - reference.embeddings(item)).max())
                result.embedding_error = max(result.embedding_error, error)
                _count(result.embeddings, name, error < EMBEDDING_BAR)
                _count(result.cached_identical, name, fresh.tobytes() == again.tobytes())


def _count(tally: Tally, name: str, equal: bool) -> None:
    tally.total += 1
    if not equal:
        tally.mismatches.append(Mismatch(name, "differs"))


async def _precision(node: Node, reference: Reference, cases: Sequence[Case]) -> tuple[float, float, int]:
    """First tokens: share whose likeliest is equal, mean difference of log probabilities, number of cases."""
    same, differences = 0, []
    for case in cases:
        ours = await checks.first_token(node, case, ALTERNATIVES)
        theirs = reference.first_token(case)
        same += max(ours, key=lambda token: ours[token]) == int(theirs.argmax())
        differences += [abs(logprob - float(theirs[token])) for token, logprob in ours.items()]
    return same / len(cases), float(np.mean(differences)), len(cases)


if __name__ == "__main__":
    sys.exit(main())
