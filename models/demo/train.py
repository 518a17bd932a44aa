"""Train the checkpoint: `python -m models.demo.train`. Saves, resumes, and stops at its time budget.

The tower learns alone first, from the targets of each merged token; then both halves learn to answer.
Batches are numbered, and a batch's number is its seed: whichever process is free takes the next one.
"""

import argparse
import os
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from tokenizers import Tokenizer
from torch import Tensor

from models.demo.batches import Encoder
from models.demo.evaluate import evaluate
from models.demo.export import export
from models.demo.mix import draw_batch
from models.demo.network import Network, Shape
from models.demo.objective import Learner
from models.demo.optimiser import Muon, gradient_of, share
from models.demo.picture import seeded
from models.demo.vocabulary import build_tokenizer

SEED = 7


@dataclass(frozen=True)
class Phase:
    """What is learnt until a share of the budget is spent: how often each skill is drawn, and by which half."""

    until: float
    mix: dict[str, float]
    with_language: bool = True


PHASES = (
    Phase(0.12, {"shapes": 8.0, "videos": 4.0, "digits": 2.0, "strips": 6.0, "cards": 5.0}, with_language=False),
    Phase(0.34, {"shapes": 4.0, "pairs": 1.5, "videos": 2.0, "digits": 0.5, "strips": 5.0, "cards": 5.0, "text": 0.3}),
    Phase(1.00, {"shapes": 8.0, "pairs": 1.5, "videos": 1.5, "digits": 0.7, "strips": 0.5, "cards": 7.0, "text": 0.2}),
)
"""Seeing before speaking, and short strips before cards: started all at once, reading does not begin."""
BATCHES_PER_STEP = 6
TOKENS_PER_BATCH = 200
MUON_RATE = 0.02
ADAM_RATE = 2e-3
WARMUP_STEPS = 50
DECAY_SHARE = 0.3
"""The last part of the budget, in which learning rates fall to zero."""
AVERAGE_DECAY = 0.99


@dataclass(frozen=True)
class Plan:
    """Minutes for all of the training and between two evaluations, and the folder that the checkpoint is written to."""

    minutes: float
    evaluate_minutes: float
    folder: Path

    @property
    def state(self) -> Path:
        """What a resumed run starts from."""
        return self.folder / ".train" / "state.pt"


class Trainer:
    """One process of a training run; all processes hold the same weights."""

    def __init__(self, plan: Plan, next_batch: "Synchronized[int]") -> None:
        torch.manual_seed(SEED)
        tokenizer = kept_tokenizer(plan.state.with_name("tokenizer.json"))
        self.plan, self.next_batch = plan, next_batch
        self.network = Network(Shape(tokenizer.get_vocab_size()))
        self.learner = Learner(self.network, Encoder(tokenizer))
        self.tokenizer = tokenizer
        self.parameters: list[Tensor] = list(self.learner.parameters())
        matrices = [tensor for name, tensor in self.network.named_parameters() if is_hidden_matrix(name, tensor)]
        others = [tensor for tensor in self.parameters if not any(tensor is matrix for matrix in matrices)]
        self.muon = Muon(matrices)
        self.adam = torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.01)
        self.average = [tensor.detach().clone() for tensor in self.parameters]
        self.losses: dict[str, list[float]] = defaultdict(list)
        self.step, self.seconds = 0, 0.0

    def run(self) -> None:
        """Step until the budget is spent; evaluate, save and export on the way and at the end."""
        started, due = time.monotonic() - self.seconds, self.seconds + self.plan.evaluate_minutes * 60
        while self.agree_on_time(time.monotonic() - started) < self.plan.minutes * 60:
            self.take_step()
            if self.seconds >= due:
                self.report()
                due += self.plan.evaluate_minutes * 60
        self.report()

    def agree_on_time(self, seconds: float) -> float:
        """Everybody follows the first process's clock."""
        shared = torch.tensor([seconds])
        dist.broadcast(shared, 0)
        self.seconds = float(shared)
        return self.seconds

    def take_step(self) -> None:
        """Share this step's batches between the processes, add up their gradients, update."""
        phase = self.phase()
        last = (self.step + 1) * BATCHES_PER_STEP
        while (number := self.claim(last)) is not None:
            rng = seeded(f"training {SEED} {number}")
            examples = draw_batch(rng, phase.mix, TOKENS_PER_BATCH)
            loss = self.learner(examples, rng, phase.with_language)
            self.losses[examples[0].skill].append(loss.item())
            (loss / BATCHES_PER_STEP).backward()
        share([gradient_of(tensor) for tensor in self.parameters])
        rate = self.rate()
        self.muon.step(MUON_RATE * rate)
        for group in self.adam.param_groups:
            group["lr"] = ADAM_RATE * rate
        self.adam.step()
        self.adam.zero_grad()
        self.learner.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1 - AVERAGE_DECAY)
        self.step += 1

    def claim(self, last: int) -> int | None:
        """The number of the next batch of this step, or nothing when all are taken."""
        with self.next_batch.get_lock():
            number = self.next_batch.value
            if number >= last:
                return None
            self.next_batch.value = number + 1
            return number

    def spent(self) -> float:
        """The share of the budget that is behind us."""
        return min(1.0, self.seconds / (self.plan.minutes * 60))

    def phase(self) -> Phase:
        """What is being learnt now."""
        return next(phase for phase in PHASES if self.spent() <= phase.until)

    def rate(self) -> float:
        """Warm up, hold, and fall to zero at the end of the budget."""
        return min(1.0, (self.step + 1) / WARMUP_STEPS, (1 - self.spent()) / DECAY_SHARE)

    def report(self) -> None:
        """Measure the averaged weights on held-out cases, save the state, export what is measured."""
        if dist.get_rank() == 0:
            self.save()
            self.swap_average()
            accuracies = evaluate(self.learner)
            print(f"{self.seconds / 60:.1f} min, step {self.step}", flush=True)
            print("  held out", *(f"{skill} {accuracy:.3f}" for skill, accuracy in accuracies.items()), flush=True)
            print("  loss", *(f"{skill} {fmean(losses):.3f}" for skill, losses in self.losses.items()), flush=True)
            self.losses.clear()
            if self.phase().with_language:
                export(self.network, self.tokenizer, self.plan.folder)
            self.swap_average()
        dist.barrier()

    def swap_average(self) -> None:
        """Exchange the weights with their running average."""
        for tensor, average in zip(self.parameters, self.average, strict=True):
            kept = tensor.detach().clone()
            tensor.data.copy_(average)
            average.copy_(kept)

    def save(self) -> None:
        """Write everything that a resumed run needs; a half-written file never takes the state's name."""
        self.plan.state.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "learner": self.learner.state_dict(),
            "average": self.average,
            "muon": list(self.muon.buffers.values()),
            "adam": self.adam.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        with tempfile.NamedTemporaryFile(dir=self.plan.state.parent, delete=False) as file:
            torch.save(state, file)
        Path(file.name).replace(self.plan.state)

    def load(self, state: dict[str, Any]) -> None:
        """Continue where a saved run stopped."""
        self.learner.load_state_dict(state["learner"])
        for target, saved in zip(
            (*self.average, *self.muon.buffers.values()), (*state["average"], *state["muon"]), strict=True
        ):
            target.copy_(saved)
        self.adam.load_state_dict(state["adam"])
        self.step, self.seconds = state["step"], state["seconds"]


def kept_tokenizer(path: Path) -> Tokenizer:
    """The run's own tokenizer: a resumed run keeps its vocabulary even if the questions were edited."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        build_tokenizer().save(str(path))
    return Tokenizer.from_file(str(path))


def is_hidden_matrix(name: str, tensor: Tensor) -> bool:
    """What Muon is for: matrices between hidden states, not embeddings."""
    return tensor.dim() == 2 and "embed" not in name


def work(rank: int, world: int, plan: Plan, next_batch: "Synchronized[int]", meeting_point: str) -> None:
    """A process of the run: join, resume, train."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=world)
    trainer = Trainer(plan, next_batch)
    if plan.state.exists():
        trainer.load(torch.load(plan.state))
    next_batch.value = trainer.step * BATCHES_PER_STEP
    dist.barrier()
    trainer.run()
    dist.destroy_process_group()


def main() -> None:
    """Parse the plan and start one process for each core."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=110)
    parser.add_argument("--evaluate-minutes", type=float, default=5)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    plan = Plan(arguments.minutes, arguments.evaluate_minutes, arguments.folder)
    kept_tokenizer(plan.state.with_name("tokenizer.json"))  # written once, before every process reads it
    next_batch = torch.multiprocessing.get_context("spawn").Value("q", 0)
    with tempfile.TemporaryDirectory() as folder:
        meeting_point = str(Path(folder) / "meeting")
        work_arguments = (arguments.processes, plan, next_batch, meeting_point)
        torch.multiprocessing.spawn(work, work_arguments, arguments.processes)  # type: ignore[attr-defined,no-untyped-call]


if __name__ == "__main__":
    main()
