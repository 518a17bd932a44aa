"""A Qwen2-VL checkpoint folder as Hugging Face writes it, read without torch or transformers.

Both layouts are understood: flat (as published in 2024: text fields at the top of config.json, `rope_scaling`, weights
`visual.*` and `model.*`) and nested (newer transformers: `text_config`, `rope_parameters`, weights `model.visual.*` and
`model.language_model.*`).
"""

from services.common.checkpoint.checkpoint import Checkpoint
from services.common.checkpoint.config import SpecialTokens, TextConfig, VisionConfig
from services.common.checkpoint.files import CheckpointError
from services.common.checkpoint.generation import GenerationDefaults
from services.common.checkpoint.packing import Packing
from services.common.checkpoint.preprocessor import ImageLimits, Preprocessor
from services.common.checkpoint.tensors import canonical_name

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "GenerationDefaults",
    "ImageLimits",
    "Packing",
    "Preprocessor",
    "SpecialTokens",
    "TextConfig",
    "VisionConfig",
    "canonical_name",
]
