"""Chooses the next token of every sequence of a step, in the order of transformers' `generate`.

Penalties first, then what must not come, then temperature, top_k, top_p and min_p. Random numbers are a function of
seed, choice and step alone, so that a seeded answer is the same alone, in any batch, and after a preemption.
"""

import math
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray

from services.decoder.compiled import kernels_for
from services.decoder.sequence import Logprob, Sequence

MAX_CANDIDATES = 256  # likeliest tokens among which top_p is looked for, before all are sorted
BLOCK_COLUMNS = 64  # of which only the greatest is looked at first


@dataclass(frozen=True, slots=True)
class Sample:
    """The token chosen for a sequence, and its log probability where asked for; None if logits are not finite."""

    token_id: int | None
    logprob: Logprob | None = None


class Sampler:
    """Samples with one vocabulary: `forbidden` ids (pads) never come out."""

    def __init__(self, forbidden: Rows[int], device: torch.device) -> None:
        self._forbidden = torch.tensor(list(forbidden), dtype=torch.int64, device=device)
        self._kernels = kernels_for(device, torch.float32)

    @torch.inference_mode()
    def sample(self, logits: torch.Tensor, sequences: Rows[Sequence]) -> list[Sample]:
        """One sample for each row of logits [rows, vocab] (fp32, overwritten)."""
        reported = _raw_logprobs(logits, sequences)
        _penalise(logits, sequences)
        _bias(logits, sequences)
        _forbid_early_stops(logits, sequences)
        _apply_grammars(logits, sequences)
        tokens, top = self._likeliest(logits)  # NaN, where there is one: it counts as the greatest
        drawn = [row for row, sequence in enumerate(sequences) if not sequence.request.params.is_greedy]
        if drawn:
            for row, token in zip(drawn, _draw(logits[drawn], [sequences[row] for row in drawn]).tolist(), strict=True):
                tokens[row] = token
        return [
            Sample(token, _logprob(reported.get(row), token)) if math.isfinite(value) else Sample(None)
            for row, (token, value) in enumerate(zip(tokens, top, strict=True))
        ]

    def _likeliest(self, logits: torch.Tensor) -> tuple[list[int], list[float]]:
        """The column of each row's greatest value, and the value, after the forbidden ones have become -inf."""
        if self._kernels is not None and logits.is_contiguous():
            return self._kernels.find_likeliest(logits, self._forbidden)
        logits.index_fill_(1, self._forbidden, -torch.inf)
        # On the CPU by NumPy, which is faster there than PyTorch.
        on_cpu = logits.device.type == "cpu"
        tokens = torch.from_numpy(logits.numpy().argmax(axis=1)) if on_cpu else logits.argmax(dim=1)
        return tokens.tolist(), logits.gather(1, tokens[:, None])[:, 0].tolist()


def uniform(seed: int, choice: int, step: int) -> float:
    """A number in [0, 1) that depends on these three alone."""
    digest = blake2b(b"%d/%d/%d" % (seed, choice, step), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def _penalise(logits: torch.Tensor, sequences: Rows[Sequence]) -> None:
    """Repetition (prompt and answer), then presence and frequency (answer), over the tokens that have occurred."""
    counted = [
        (row, sequence, sequence.counts) for row, sequence in enumerate(sequences) if sequence.counts is not None
    ]
    if not counted:
        return
    sizes = [len(counts.token_ids) for _, _, counts in counted]

    def spread(values: list[float]) -> torch.Tensor:
        return torch.from_numpy(np.repeat(np.array(values, dtype=np.float32), sizes)).to(logits.device)

    params = [sequence.request.params for _, sequence, _ in counted]
    rows = torch.from_numpy(np.repeat([row for row, _, _ in counted], sizes)).to(logits.device)
    tokens = torch.from_numpy(np.concatenate([counts.token_ids for _, _, counts in counted])).to(logits.device)
    times = torch.from_numpy(np.concatenate([counts.counts for _, _, counts in counted])).to(logits.device)
    repetition = spread([p.repetition_penalty for p in params])
    values = logits[rows, tokens]
    values = torch.where(values < 0, values * repetition, values / repetition)
    values -= spread([p.presence_penalty for p in params]) * (times > 0)
    values -= spread([p.frequency_penalty for p in params]) * times
    logits[rows, tokens] = values


def _bias(logits: torch.Tensor, sequences: Rows[Sequence]) -> None:
    biases = [(row, *bias) for row, sequence in enumerate(sequences) for bias in sequence.request.params.logit_bias]
    if biases:
        rows, tokens, values = zip(*biases, strict=True)
        logits[list(rows), list(tokens)] += torch.tensor(values, device=logits.device)


def _forbid_early_stops(logits: torch.Tensor, sequences: Rows[Sequence]) -> None:
    for row, sequence in enumerate(sequences):
        if sequence.num_output_tokens < sequence.request.params.min_tokens:
            logits[row, list(sequence.request.params.stop_ids)] = -torch.inf


def _apply_grammars(logits: torch.Tensor, sequences: Rows[Sequence]) -> None:
    for row, sequence in enumerate(sequences):
        if sequence.matcher is not None:
            allowed = torch.from_numpy(sequence.matcher.allowed_tokens(logits.shape[1]))
            logits[row].masked_fill_(~allowed.to(logits.device), -torch.inf)


def _draw(logits: torch.Tensor, sequences: Rows[Sequence]) -> torch.Tensor:
    """Sample each row by inverting its cumulative distribution, in the order of the vocabulary."""
    params = [sequence.request.params for sequence in sequences]
    logits = logits / _column([p.temperature for p in params], logits)
    ids = torch.arange(logits.shape[1], device=logits.device)
    if _keep_top_k(logits, [p.top_k for p in params]):
        logits, ids = _left(logits, ids)
    _keep_top_p(logits, [p.top_p for p in params])
    _keep_min_p(logits, [p.min_p for p in params])
    logits, ids = _left(logits, ids)
    weights = (logits.double() - logits.amax(dim=1, keepdim=True)).exp_()
    cumulative = weights.cumsum(dim=1)
    points = [uniform(s.request.params.seed, s.index, s.num_output_tokens) for s in sequences]
    target = torch.tensor(points, dtype=torch.float64, device=logits.device)[:, None] * cumulative[:, -1:]
    places = torch.searchsorted(cumulative, target, right=True).squeeze(1)
    return ids[places.clamp_(max=len(ids) - 1)]


def _left(logits: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The columns that some row has left, and their ids: what is cut off weighs nothing."""
    columns = (logits > -torch.inf).any(dim=0)
    return (logits, ids) if bool(columns.all()) else (logits[:, columns], ids[columns])


def _keep_top_k(logits: torch.Tensor, top_ks: list[int]) -> bool:
    """Whether there was anything to cut off."""
    wanted = [top_k if 0 < top_k < logits.shape[1] else 0 for top_k in top_ks]
    if any(wanted):
        places = torch.tensor([max(top_k - 1, 0) for top_k in wanted], device=logits.device)
        _cut(logits, _greatest(logits, max(wanted)).gather(1, places[:, None]), [top_k > 0 for top_k in wanted])
    return any(wanted)


def _keep_top_p(logits: torch.Tensor, top_ps: list[float]) -> None:
    """Keep the likeliest tokens whose likelier ones add up to less than top_p; the likeliest always stays."""
    concerned = [top_p < 1.0 for top_p in top_ps]
    if not any(concerned):
        return
    total = logits.logsumexp(dim=1, keepdim=True)
    wanted = _column([top_p if top_p < 1.0 else 0.0 for top_p in top_ps], logits)
    values = _greatest(logits, min(MAX_CANDIDATES, logits.shape[1]))
    probabilities = (values - total).exp_()
    if bool((probabilities.sum(dim=1, keepdim=True) < wanted).any()):
        values = logits.sort(dim=1, descending=True).values
        probabilities = (values - total).exp_()
    num_kept = ((probabilities.cumsum(dim=1) - probabilities) < wanted).sum(dim=1, keepdim=True).clamp_(min=1)
    _cut(logits, values.gather(1, num_kept - 1), concerned)


def _keep_min_p(logits: torch.Tensor, min_ps: list[float]) -> None:
    if any(min_ps):
        share = _column(min_ps, logits).log()  # -inf for 0
        _cut(logits, logits.amax(dim=1, keepdim=True) + share, [min_p > 0.0 for min_p in min_ps])


def _greatest(logits: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` greatest values of each row, in order: they stand in the `count` blocks with the greatest maxima."""
    num_rows, num_blocks = len(logits), logits.shape[1] // BLOCK_COLUMNS
    if count * 4 > num_blocks:
        return logits.topk(count, dim=1).values
    whole = num_blocks * BLOCK_COLUMNS
    blocks = logits[:, :whole].view(num_rows, num_blocks, BLOCK_COLUMNS)
    best = blocks.amax(dim=2).topk(count, dim=1).indices
    found = blocks.gather(1, best[:, :, None].expand(-1, -1, BLOCK_COLUMNS)).view(num_rows, -1)
    return torch.cat([found, logits[:, whole:]], dim=1).topk(count, dim=1).values


def _cut(logits: torch.Tensor, least: torch.Tensor, concerned: list[bool]) -> None:
    """Forbid the tokens whose logit is below `least` [rows, 1], in the rows that this concerns."""
    others = ~torch.tensor(concerned, device=logits.device)[:, None]
    logits.masked_fill_(logits < least.masked_fill(others, -torch.inf), -torch.inf)


def _column(values: list[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


def _raw_logprobs(
    logits: torch.Tensor, sequences: Rows[Sequence]
) -> dict[int, tuple[NDArray[np.float32], tuple[tuple[int, float], ...]]]:
    """Row -> log probabilities of all tokens, and the likeliest ones, for the rows that report them."""
    found = {}
    for row, sequence in enumerate(sequences):
        num_alternatives = sequence.request.params.top_logprobs
        if num_alternatives is not None:
            logprobs = torch.log_softmax(logits[row], dim=-1)
            values, ids = logprobs.topk(num_alternatives)
            found[row] = logprobs.cpu().numpy(), tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return found


def _logprob(
    reported: tuple[NDArray[np.float32], tuple[tuple[int, float], ...]] | None, token_id: int
) -> Logprob | None:
    if reported is None:
        return None
    logprobs, alternatives = reported
    return Logprob(token_id, float(logprobs[token_id]), alternatives)
