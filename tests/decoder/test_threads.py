"""How many threads a model's steps are worth."""

from dataclasses import replace
from pathlib import Path

import torch

from services.common.checkpoint import Checkpoint
from services.decoder.assemble import useful_threads

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"


def test_a_small_model_has_no_helpers() -> None:
    """The shipped checkpoint computes in one thread, a model of a usual size in as many as PyTorch takes."""
    small = Checkpoint.open(str(DEMO)).text
    usual = replace(small, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, vocab_size=151_936)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert (useful_threads(small), useful_threads(usual)) == (1, 2)
    finally:
        torch.set_num_threads(before)
