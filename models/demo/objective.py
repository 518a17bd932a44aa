"""What is minimised: the answers' tokens, and what the tower should have seen at each merged token."""

from dataclasses import dataclass
from random import Random

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from models.demo.batches import Encoder, Grid, TextBatch, patch_batch
from models.demo.network import Network
from models.demo.picture import IGNORED, NUM_PLACES, TARGETS, Example

TARGETS_WEIGHT = 0.5


@dataclass(frozen=True)
class Seen:
    """Pictures after the tower: embeddings [batch, tokens, hidden], the quarter of the shape at each, grids, loss."""

    embeddings: Tensor
    places: Tensor
    grids: list[Grid]
    loss: Tensor


class Learner(nn.Module):
    """The network, and the heads that are dropped at export: on the tower, and halfway through the decoder."""

    def __init__(self, network: Network, encoder: Encoder) -> None:
        super().__init__()
        self.network = network
        self.heads = nn.Linear(network.model.shape.hidden, sum(TARGETS.values()))
        self.places = nn.Linear(network.model.shape.hidden, NUM_PLACES)
        self.encoder = encoder

    def see(self, examples: list[Example]) -> Seen | None:
        """All pictures of each example, if it has any."""
        embeddings, places, grids, losses = [], [], [], []
        for pictures in zip(*(example.pictures for example in examples), strict=True):
            batch = patch_batch(list(pictures))
            with torch.autocast("cpu", torch.bfloat16):
                seen = self.network.visual(batch.patches, batch.grid[1:]).float()
            seen = seen.view(len(examples), -1, seen.shape[-1])
            embeddings.append(seen)
            places.append(batch.cells[..., -1])
            grids.append(batch.grid)
            losses.append(self.targets_loss(seen, batch.cells))
        if not grids:
            return None
        return Seen(torch.cat(embeddings, 1), torch.cat(places, 1), grids, torch.stack(losses).mean())

    def targets_loss(self, seen: Tensor, cells: Tensor) -> Tensor:
        """Cross entropy of each kind of target that these pictures have, summed over kinds."""
        outputs = self.heads(seen).split(list(TARGETS.values()), -1)
        losses = [
            F.cross_entropy(output.flatten(0, 1), cells[..., index].flatten(), ignore_index=IGNORED)
            for index, output in enumerate(outputs)
            if (cells[..., index] != IGNORED).any()
        ]
        return torch.stack(losses).sum()

    def answer_logits(self, seen: Seen | None, batch: TextBatch) -> tuple[Tensor, Tensor]:
        """Logits of all answer tokens in reading order, and the states of media tokens halfway through the decoder."""
        model = self.network.model
        states = model.embed_tokens(batch.ids)
        if seen:
            states = states.masked_scatter(batch.is_media[..., None], seen.embeddings)
        before_answers, num_shared = batch.answers.roll(-1, dims=1), batch.num_shared
        with torch.autocast("cpu", torch.bfloat16):
            states, halfway = model(states, batch.positions, before_answers, num_shared)
        return states.float() @ model.embed_tokens.weight.T, halfway[batch.is_media[:, num_shared:]]

    def forward(self, examples: list[Example], rng: Random, with_language: bool) -> Tensor:
        """The loss of a batch of examples of one skill and size."""
        seen = self.see(examples)
        if seen and not with_language:
            return seen.loss
        batch = self.encoder.batch(examples, seen.grids if seen else [], rng)
        logits, halfway = self.answer_logits(seen, batch)
        loss = F.cross_entropy(logits, batch.ids[batch.answers])
        if seen:
            loss = loss + TARGETS_WEIGHT * seen.loss
            if (seen.places != IGNORED).any():
                loss = loss + TARGETS_WEIGHT * self.places_loss(halfway, seen.places)
        return loss

    def places_loss(self, halfway: Tensor, places: Tensor) -> Tensor:
        """M-RoPE tells the decoder where a token is; to answer with it, the token has to know it as well."""
        return F.cross_entropy(self.places(halfway.float()), places.flatten(), ignore_index=IGNORED)

    @torch.no_grad()
    def answers_exactly(self, examples: list[Example], rng: Random) -> list[bool]:
        """Whether greedy decoding gives each example's one answer: then, and only then, every token of it wins."""
        seen = self.see(examples)
        batch = self.encoder.batch(examples, seen.grids if seen else [], rng)
        logits, _ = self.answer_logits(seen, batch)
        right = torch.eq(logits.argmax(-1), batch.ids[batch.answers])
        return [bool(row.all()) for row in torch.split(right, batch.answers.sum(1).tolist())]
