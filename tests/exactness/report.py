"""The table that `make exactness` writes."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import transformers

if TYPE_CHECKING:
    from tests.exactness.__main__ import Result


def is_exact(result: "Result") -> bool:
    """Whether nothing differed, and whether the condition that should preempt did."""
    tallies = [*result.tallies.values(), result.embeddings, result.cached_identical]
    return result.preemptions > 0 and all(tally.equal == tally.total for tally in tallies)


def render(results: Sequence["Result"], seconds: float) -> str:
    """The whole page."""
    return "\n".join(_lines(results, seconds)) + "\n"


def _lines(results: Sequence["Result"], seconds: float) -> Iterator[str]:
    cases = sum(next(iter(result.tallies.values())).total for result in results)
    yield "# Exactness: results"
    yield ""
    yield f"Written by `make exactness` in {seconds / 60:.0f} minutes: {cases} cases (conversation x checkpoint),"
    yield f"each in every condition below. Against transformers {transformers.__version__}, fp32 on the CPU, greedy, 12"
    yield "tokens. A number is how many came out equal, of how many. The yardstick: [exactness.md](exactness.md)."
    yield ""
    yield from _tallies(results)
    yield ""
    yield "## Embeddings"
    yield ""
    yield "Rows of the encoder against the reference's vision tower, and the same item a second time, from the cache."
    yield ""
    yield "| checkpoint | within 1e-4 | largest difference | cached bit-identical to fresh |"
    yield "|---|---|---|---|"
    for result in results:
        near, same = result.embeddings, result.cached_identical
        yield (
            f"| {result.checkpoint} | {near.equal} of {near.total} | {result.embedding_error:.1e} "
            f"| {same.equal} of {same.total} |"
        )
    yield ""
    yield "## Half precision"
    yield ""
    yield "The first token's distribution against the reference in the same dtype: likeliest token equal, and the mean"
    yield "difference of the log probabilities of our 20 likeliest."
    yield ""
    yield "| checkpoint | dtype | likeliest equal | mean difference | cases |"
    yield "|---|---|---|---|---|"
    for result in results:
        for dtype, (share, difference, count) in result.precision.items():
            yield f"| {result.checkpoint} | {dtype} | {share:.0%} | {difference:.4f} | {count} |"
    yield ""
    yield "## Where transformers would place text elsewhere"
    yield ""
    yield "In these cases a video has more slices than merged rows and columns. This release of transformers puts the"
    yield "text that follows inside the video; the reference above was given the trained rule's positions instead."
    yield ""
    for result in results:
        yield f"- {result.checkpoint}: {'; '.join(result.deviations) or 'none'}"


def _tallies(results: Sequence["Result"]) -> Iterator[str]:
    names = list(results[0].tallies)
    yield "| condition | " + " | ".join(result.checkpoint for result in results) + " |"
    yield "|---" * (len(results) + 1) + "|"
    for name in names:
        cells = [f"{result.tallies[name].equal} of {result.tallies[name].total}" for result in results]
        yield f"| {name} | " + " | ".join(cells) + " |"
    yield "| sequences preempted | " + " | ".join(str(result.preemptions) for result in results) + " |"
