"""What is minimised: the answers' tokens, and what the tower should have seen at each merged token."""

from random import Random

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from models.demo.batches import Encoder, TextBatch, patch_batch
from models.demo.network import Network
from models.demo.picture import IGNORED, TARGETS, Example

TARGETS_WEIGHT = 0.5


class Learner(nn.Module):
    """The network, and the heads on the tower that are dropped at export."""

    def __init__(self, network: Network, encoder: Encoder) -> None:
        super().__init__()
        self.network = network
        self.heads = nn.Linear(network.model.shape.hidden, sum(TARGETS.values()))
        self.encoder = encoder

    def see(self, examples: list[Example]) -> tuple[Tensor, Tensor, list[tuple[int, int, int]]]:
        """Embeddings [batch, tokens, hidden] of all pictures of each example, the targets' loss, and the grids."""
        embeddings, losses, grids = [], [], []
        for pictures in zip(*(example.pictures for example in examples), strict=True):
            batch = patch_batch(list(pictures))
            with torch.autocast("cpu", torch.bfloat16):
                seen = self.network.visual(batch.patches, batch.grid[1:]).float()
            seen = seen.view(len(examples), -1, seen.shape[-1])
            embeddings.append(seen)
            losses.append(self.targets_loss(seen, batch.cells))
            grids.append(batch.grid)
        if not embeddings:
            return torch.empty(0), torch.zeros(()), []
        return torch.cat(embeddings, 1), torch.stack(losses).mean(), grids

    def targets_loss(self, seen: Tensor, cells: Tensor) -> Tensor:
        """Cross entropy of each kind of target that these pictures have, summed over kinds."""
        outputs = self.heads(seen).split(list(TARGETS.values()), -1)
        losses = [
            F.cross_entropy(output.flatten(0, 1), cells[..., index].flatten(), ignore_index=IGNORED)
            for index, output in enumerate(outputs)
            if (cells[..., index] != IGNORED).any()
        ]
        return torch.stack(losses).sum()

    def answer_logits(self, embeddings: Tensor, batch: TextBatch) -> tuple[Tensor, Tensor]:
        """Logits and ids of all answer tokens, in reading order."""
        model = self.network.model
        states = model.embed_tokens(batch.ids)
        if len(embeddings):
            states = states.masked_scatter(batch.is_media[..., None], embeddings)
        before_answers = batch.answers.roll(-1, dims=1)
        with torch.autocast("cpu", torch.bfloat16):
            states = model(states, batch.positions, before_answers, batch.num_shared).float()
        return states @ model.embed_tokens.weight.T, batch.ids[batch.answers]

    def forward(self, examples: list[Example], rng: Random, with_language: bool) -> Tensor:
        """The loss of a batch of examples of one skill and size."""
        embeddings, targets_loss, grids = self.see(examples)
        if not with_language:
            return targets_loss
        logits, ids = self.answer_logits(embeddings, self.encoder.batch(examples, grids, rng))
        return F.cross_entropy(logits, ids) + TARGETS_WEIGHT * targets_loss

    @torch.no_grad()
    def answers_exactly(self, examples: list[Example], rng: Random) -> list[bool]:
        """Whether greedy decoding gives each example's one answer: then, and only then, every token of it wins."""
        embeddings, _, grids = self.see(examples)
        batch = self.encoder.batch(examples, grids, rng)
        logits, ids = self.answer_logits(embeddings, batch)
        right = torch.eq(logits.argmax(-1), ids)
        return [bool(row.all()) for row in torch.split(right, batch.answers.sum(1).tolist())]
