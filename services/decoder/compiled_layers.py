"""All layers of the language model in one call, for the few rows of a step that continues streams."""

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from services.common.checkpoint import TextConfig
from services.common.native_linear import NativeLinear
from services.decoder.compiled import Kernels, kernels_for
from services.decoder.compiled_attention import CompiledAttention

if TYPE_CHECKING:
    from services.decoder.language_model import LayerWeights

MAX_ROWS = 32  # from here on what lies between two kernels does not count

_SIZES = "num_layers size num_gated num_heads num_kv_heads head_dim"
_LINEARS = ("qkv", "output", "gate_up", "down")


class _Layer(ctypes.Structure):
    """`Layer` of layers.c."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("input_norm", "post_norm", *_LINEARS))


class _Model(ctypes.Structure):
    """`Model` of layers.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES.split()),
        ("layers", ctypes.c_void_p),
        ("eps", ctypes.c_float),
    )


class CompiledLayers:
    """What the layers of a `LanguageModel` do to at most `MAX_ROWS` rows, to the last bit."""

    def __init__(self, kernels: Kernels, config: TextConfig, layers: "Sequence[LayerWeights]") -> None:
        self._kernels, self._layers = kernels, layers  # which own what is pointed to
        self._described = (_Layer * len(layers))(*(_Layer(*_addresses(layer)) for layer in layers))
        self._model = _Model(
            *(len(layers), config.hidden_size, config.intermediate_size),
            *(config.num_attention_heads, config.num_key_value_heads, config.head_dim),
            *(ctypes.addressof(self._described), config.rms_norm_eps),
        )
        self._address = ctypes.addressof(self._model)
        self._workspace = torch.empty(kernels.layers_workspace_bytes(self._address, MAX_ROWS), dtype=torch.uint8)

    def run(self, attention: CompiledAttention, rows: torch.Tensor, memory: torch.Tensor) -> None:
        """Rows [rows, hidden], in place; `memory` [layers, ...] is the cache's."""
        self._kernels.run_layers(
            *(self._address, attention.address, rows.data_ptr(), memory.data_ptr(), memory.stride(0)),
            *(self._workspace.data_ptr(), torch.get_num_threads()),
        )


def layers_in_one(
    config: TextConfig, dtype: torch.dtype, device: torch.device, layers: "Sequence[LayerWeights]"
) -> CompiledLayers | None:
    """None where some part of them is left to PyTorch."""
    kernels = kernels_for(device, dtype)
    are_compiled = all(isinstance(getattr(layer, name), NativeLinear) for layer in layers for name in _LINEARS)
    return CompiledLayers(kernels, config, layers) if kernels is not None and are_compiled else None


def _addresses(layer: "LayerWeights") -> list[int]:
    norms = [layer.input_norm.data_ptr(), layer.post_norm.data_ptr()]
    linears = [linear for name in _LINEARS if isinstance(linear := getattr(layer, name), NativeLinear)]
    return norms + [linear.address for linear in linears]
