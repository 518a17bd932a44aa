"""How many threads a model's steps are worth, and that no others compete with them."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from services.common.checkpoint import Checkpoint
from services.decoder.assemble import useful_threads

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"

PUT_TOGETHER = """
import os, sys, torch
from concurrent.futures import ThreadPoolExecutor
from services.common.checkpoint import Checkpoint
from services.decoder.assemble import build_engine
from services.decoder.settings import DecoderSettings
from services.decoder.weights import load_language_model

torch.set_num_threads(2)
checkpoint = Checkpoint.open(sys.argv[1])
with ThreadPoolExecutor(1) as loader:  # whose helpers end with it
    load = loader.submit(load_language_model, checkpoint, torch.float32, torch.device("cpu"), "none")
model = load.result()
settings = DecoderSettings(model=sys.argv[1], kv_cache_tokens=64)
before = set(os.listdir("/proc/self/task"))
build_engine(settings, checkpoint, model)
print(len(set(os.listdir("/proc/self/task")) - before))
"""


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


def test_an_engine_is_put_together_without_helpers() -> None:
    """The thread that builds an engine keeps no helpers of OpenMP, beside which the engine's would sleep."""
    command = [sys.executable, "-c", PUT_TOGETHER, str(DEMO)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
