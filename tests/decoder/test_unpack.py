"""AWQ and GPTQ checkpoints compute exactly what the same numbers unpacked do."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from services.common.checkpoint import Checkpoint, CheckpointError
from services.common.linear import Quantization
from services.decoder.scheduler import Chunk
from services.decoder.weights import load_language_model
from tests.checkpoints import CheckpointSpec, build_checkpoint
from tests.decoder.harness import Harness, Model

CPU = torch.device("cpu")
SPEC = CheckpointSpec(tied=False, dtype="float16")
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}

Levels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Layer:
    """Random numbers of a layer [inputs, outputs], and what they stand for: (level - zero) * scale of their group."""

    levels: Levels
    zeros: Levels  # [groups, outputs]
    scales: NDArray[np.float16]  # [groups, outputs]
    groups: Levels  # [inputs]

    @classmethod
    def random(cls, shape: Sequence[int], config: dict[str, Any], *, shuffled: bool) -> "Layer":
        """A layer with a weight of `shape`; `shuffled` deals inputs to groups as act-order does."""
        num_outputs, num_inputs = shape
        random = np.random.default_rng(num_outputs * num_inputs)
        size = config["group_size"] if config["group_size"] > 0 else num_inputs
        groups = np.arange(num_inputs) // size
        most, group_shape = 1 << config["bits"], (num_inputs // size, num_outputs)
        return cls(
            levels=random.integers(0, most, (num_inputs, num_outputs)),
            zeros=random.integers(0, most, group_shape),
            scales=random.uniform(0.5, 2, group_shape).astype(np.float16) * np.float16(1.4 / most / num_inputs**0.5),
            groups=random.permutation(groups) if shuffled else groups,
        )

    @property
    def weight(self) -> torch.Tensor:
        """The layer unpacked, [outputs, inputs]."""
        rows = [
            (self.levels[i] - self.zeros[group]) * self.scales[group].astype(np.float32)
            for i, group in enumerate(self.groups)
        ]
        return torch.from_numpy(np.stack(rows).T.astype(np.float32).copy())


def words(numbers: Levels, bits: int, order: tuple[int, ...] | None = None) -> NDArray[np.int32]:
    """Pack each row: number `order[i]` of a word stands at its i-th place from the low end."""
    per_word = 32 // bits
    out = []
    for row in numbers:
        parts = row.reshape(-1, per_word).tolist()
        out.append([sum(part[o] << bits * i for i, o in enumerate(order or range(per_word))) for part in parts])
    return np.array(out, dtype=np.uint32).view(np.int32)


def pack_awq(layer: Layer, config: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """As AutoAWQ writes it for its GEMM kernels."""
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return {
        "qweight": words(layer.levels, config["bits"], order),
        "qzeros": words(layer.zeros, config["bits"], order),
        "scales": layer.scales,
    }


def pack_gptq(layer: Layer, config: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """As AutoGPTQ writes it: zero points less one in the first version of the layout."""
    less = 0 if config.get("checkpoint_format") == "gptq_v2" else 1
    return {
        "qweight": np.ascontiguousarray(words(layer.levels.T, config["bits"]).T),
        "qzeros": words((layer.zeros - less) % (1 << config["bits"]), config["bits"]),
        "scales": layer.scales,
        "g_idx": layer.groups.astype(np.int32),
    }


def build_pair(
    folder: Path, config: dict[str, Any], pack: Callable[..., dict[str, NDArray[Any]]], *, shuffled: bool = False
) -> tuple[Path, Path]:
    """A packed checkpoint, and one of the same numbers in fp32."""
    packed, plain = (build_checkpoint(folder / name, SPEC) for name in ("packed", "plain"))
    tensors = load_file(packed / "model.safetensors")
    stored, unpacked = dict(tensors), dict(tensors)
    for name, tensor in tensors.items():
        if name.startswith("model.") and name.endswith("_proj.weight"):
            layer = Layer.random(tensor.shape, config, shuffled=shuffled)
            del stored[name]
            parts = pack(layer, config)
            stored |= {name.replace("weight", part): torch.from_numpy(value) for part, value in parts.items()}
            unpacked[name] = layer.weight
    save_file(stored, packed / "model.safetensors")
    save_file(unpacked, plain / "model.safetensors")
    write_config(packed, config)
    return packed, plain


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Set config.json's quantization_config."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": config}))


def logits(path: Path, usual: Model, quantization: Quantization = "none") -> torch.Tensor:
    """Of the token after a prompt."""
    model = load_language_model(Checkpoint.open(str(path)), torch.float32, CPU, quantization)
    harness = Harness(usual)
    parts = harness.build(model)
    sequence = harness.request(usual.case(40)).request.sequences[0]
    sequence.blocks = [parts.pool.allocate() for _ in range(5)]
    return parts.engine._runner.run([Chunk(sequence, 0, 40)])


@pytest.mark.parametrize(
    ("config", "pack", "shuffled"),
    [
        (AWQ, pack_awq, False),
        (AWQ | {"group_size": -1}, pack_awq, False),
        (GPTQ, pack_gptq, False),
        (GPTQ | {"desc_act": True}, pack_gptq, True),
        (GPTQ | {"checkpoint_format": "gptq_v2"}, pack_gptq, False),
        (GPTQ | {"bits": 8, "group_size": -1}, pack_gptq, False),
    ],
    ids=["awq", "awq-one-group", "gptq", "gptq-act-order", "gptq-v2", "gptq-8-bits"],
)
def test_packed_equals_unpacked(
    gqa_model: Model,
    tmp_path: Path,
    config: dict[str, Any],
    pack: Callable[..., dict[str, NDArray[Any]]],
    shuffled: bool,
) -> None:
    """Logits are bit for bit those of the checkpoint that holds the unpacked numbers; the vision half is as stored."""
    packed, plain = build_pair(tmp_path, config, pack, shuffled=shuffled)
    assert torch.equal(logits(packed, gqa_model), logits(plain, gqa_model))
    assert Checkpoint.open(str(packed)).vision_digest() == Checkpoint.open(str(plain)).vision_digest()


def test_int8_on_top(gqa_model: Model, tmp_path: Path) -> None:
    """Unpacked weights can be computed in int8 like any others."""
    packed, plain = build_pair(tmp_path, AWQ, pack_awq)
    assert torch.equal(logits(packed, gqa_model, "int8"), logits(plain, gqa_model, "int8"))


def test_damage_is_named(tmp_path: Path) -> None:
    """Parts that are missing or do not fit each other are told, with the layer."""
    packed, _ = build_pair(tmp_path, AWQ, pack_awq)
    tensors = load_file(packed / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.scales"
    for part in (None, tensors[name][:, :8].contiguous()):
        damaged = {other: tensor for other, tensor in tensors.items() if other != name}
        save_file(damaged if part is None else damaged | {name: part}, packed / "model.safetensors")
        with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.down_proj cannot be unpacked"):
            load_language_model(Checkpoint.open(str(packed)), torch.float32, CPU)


def test_a_packed_head_is_not_tied(gqa_model: Model, tmp_path: Path) -> None:
    """A checkpoint whose head is stored packed uses that head."""
    packed, plain = build_pair(tmp_path, GPTQ, pack_gptq)
    layer = Layer.random((416, SPEC.hidden), GPTQ, shuffled=False)  # words hold 8: two tokens more than there are
    for folder in (packed, plain):
        tensors = load_file(folder / "model.safetensors")
        del tensors["lm_head.weight"]
        head = pack_gptq(layer, GPTQ) if folder == packed else {"weight": layer.weight.numpy()}
        tensors |= {f"lm_head.{part}": torch.from_numpy(value) for part, value in head.items()}
        save_file(tensors, folder / "model.safetensors")
    assert torch.equal(logits(packed, gqa_model), logits(plain, gqa_model))
