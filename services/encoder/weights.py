"""The vision half of a checkpoint: its weights, their digest, and where and in what arithmetic they run."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import structlog
import torch
from safetensors import safe_open
from torch import Tensor, nn

from services.common.checkpoint import Checkpoint, CheckpointError, canonical_name
from services.common.linear import ACTIVATIONS, Activation, Quantization, make_linear, require_quantizable
from services.common.settings import variable_name
from services.encoder.settings import EmbeddingDtype, EncoderSettings
from services.encoder.vision_model import Mlp, VisionTransformer

log = structlog.get_logger()

_PREFIX = "visual."
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Vision:
    """A loaded vision transformer. `dtype` is what it computes in, `embedding_dtype` what its rows are rounded to.

    `digest` is "sha256:" and that of the weights as stored, of their quantization and of the rounding, if there are
    such: what rows depend on.
    """

    model: VisionTransformer
    digest: str
    dtype: str
    embedding_dtype: str
    device: torch.device


class FastLinear(nn.Module):
    """A linear layer's weights in the form that is fastest where they run, or in int8."""

    def __init__(self, layer: nn.Linear, quantization: Quantization, activation: Activation = "none") -> None:
        super().__init__()
        self._linear = make_linear(layer.weight.detach(), layer.bias, quantization, activation)

    def forward(self, rows: Tensor) -> Tensor:
        return self._linear(rows)


def load_vision(
    checkpoint: Checkpoint,
    *,
    dtype: str,
    device: str,
    quantization: Quantization = "none",
    embedding_dtype: EmbeddingDtype = "auto",
) -> Vision:
    """Read the vision weights alone. The types and `device` may be "auto". Raises CheckpointError."""
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, checkpoint.weight_dtype, chosen_device)
    require_quantizable(quantization, chosen_dtype, chosen_device, variable_name(EncoderSettings, "quantize"))
    with torch.device("meta"):
        model = VisionTransformer(checkpoint.vision)
    digest = hashlib.sha256(quantization.encode() if quantization != "none" else b"")  # int8 has rows of its own
    rows_dtype = chosen_dtype if embedding_dtype == "auto" else embedding_dtype
    if rows_dtype != chosen_dtype:
        digest.update(f"rows:{rows_dtype};".encode())
    weights = {}
    for name, tensor in stored_tensors(checkpoint):
        _update(digest, name, tensor)
        weights[name] = tensor.to(chosen_device, DTYPES[chosen_dtype])
    _assign(model, weights, checkpoint)
    num_tensors = len(weights)
    del weights, tensor  # or every layer would be held twice
    with torch.inference_mode():
        lay_out(model, quantization, activation_of(checkpoint))
    log.info("vision weights loaded", device=str(chosen_device), dtype=chosen_dtype, num_tensors=num_tensors)
    return Vision(model.eval(), f"sha256:{digest.hexdigest()}", chosen_dtype, rows_dtype, chosen_device)


def lay_out(model: VisionTransformer, quantization: Quantization, activation: Activation) -> None:
    """Put a FastLinear in the place of every linear layer, each MLP's first with the activation behind it.

    The patch embedding reads pixels and is never quantised. Beside int8, attention need not be exact either.
    """
    model.rounds_heads = quantization == "int8"
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear):
                chosen: Quantization = "none" if parent is model else quantization
                after = activation if isinstance(parent, Mlp) and name == "fc1" else "none"
                setattr(parent, name, FastLinear(layer, chosen, after))


def activation_of(checkpoint: Checkpoint) -> Activation:
    """Of the vision transformer's MLPs. Raises CheckpointError for one that is not known."""
    name = checkpoint.vision.hidden_act
    if name not in ACTIVATIONS:
        raise CheckpointError(f"{checkpoint.path}: vision hidden_act {name!r} is none of {', '.join(ACTIVATIONS)}")
    return cast("Activation", name)


def choose_device(device: str) -> torch.device:
    """ "auto" is CUDA where present, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else torch.device(device)


def choose_dtype(dtype: str, stored: str, device: torch.device) -> str:
    """ "auto" is the checkpoint's own on CUDA, and float32 on the CPU, where 16-bit arithmetic is emulated."""
    if dtype != "auto":
        return dtype
    return stored if device.type == "cuda" else "float32"


def stored_tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    """The vision tensors as stored, by canonical name without its prefix, sorted by it; one in memory at a time."""
    files = checkpoint.tensor_files([_PREFIX])
    for stored_name in sorted(files, key=canonical_name):
        with safe_open(files[stored_name], framework="pt") as file:
            yield canonical_name(stored_name).removeprefix(_PREFIX), file.get_tensor(stored_name)


def _update(digest: "hashlib._Hash", name: str, tensor: Tensor) -> None:
    digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
    digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)


def _assign(model: VisionTransformer, weights: dict[str, Tensor], checkpoint: Checkpoint) -> None:
    # the checkpoint's patch embedding is a convolution whose stride is its kernel: a linear layer on flat patches
    if "patch_embed.proj.weight" in weights:
        weights["patch_embed.weight"] = weights.pop("patch_embed.proj.weight").flatten(1)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint.path}: the vision weights do not fit config.json: {error}") from error
