"""The checkpoint as a whole."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from services.common.checkpoint import config as configs
from services.common.checkpoint.files import CheckpointError, read_json, resolve
from services.common.checkpoint.generation import GenerationDefaults, read_generation
from services.common.checkpoint.packing import Packing, read_packing
from services.common.checkpoint.preprocessor import Preprocessor, read_preprocessor
from services.common.checkpoint.tensors import DTYPES, Tensor, canonical_name, digest_of_tensors, read_tensors


class Checkpoint:
    """What every service needs to know of the model. Configs are read at once; weights are looked at when asked for."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self._config = read_json(path / "config.json")
        configs.check_supported(self._config)
        self.packing: Packing | None = read_packing(self._config)
        self.vision = configs.read_vision(self._config)
        self.text = configs.read_text(self._config)
        configs.check_agreement(self._config, self.vision, self.text)
        self.special_tokens = configs.read_special_tokens(self._config)
        self.preprocessor: Preprocessor = read_preprocessor(path, self.vision)
        self.generation: GenerationDefaults = read_generation(path, self._config)

    @classmethod
    def open(cls, model: str) -> "Checkpoint":
        """A folder, or an id on the Hugging Face hub (HF_HOME, HF_HUB_OFFLINE hold). CheckpointError says why not."""
        path = resolve(model)
        return cls(path, path.resolve().name if Path(model).expanduser().is_dir() else model)

    @property
    def image_token_id(self) -> int:
        return self.special_tokens.image_token_id

    @property
    def video_token_id(self) -> int:
        return self.special_tokens.video_token_id

    @property
    def vision_start_token_id(self) -> int:
        return self.special_tokens.vision_start_token_id

    @property
    def vision_end_token_id(self) -> int:
        return self.special_tokens.vision_end_token_id

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Every stored tensor by its stored name."""
        return read_tensors(self.path)

    @cached_property
    def weight_dtype(self) -> str:
        """One of "float32", "bfloat16" or "float16": what the config says, else what is stored."""
        for section in (self._config, configs.text_section(self._config)):
            named = section.raw("dtype") or section.raw("torch_dtype")
            if isinstance(named, str) and named.removeprefix("torch.") in DTYPES.values():
                return named.removeprefix("torch.")
        return self._stored_dtype()

    def tensor_files(self, prefixes: Sequence[str]) -> dict[str, Path]:
        """Stored name -> file of the tensors whose canonical name ("visual.", "language.", "lm_head.") starts so."""
        wanted = tuple(prefixes)
        return {t.name: t.file for t in self.tensors.values() if canonical_name(t.name).startswith(wanted)}

    def digest(self) -> str:
        """Names the checkpoint as a whole: config.json and samples of all weights. The same in every service."""
        return digest_of_tensors(self.tensors.values(), self._config.path.read_bytes())

    def vision_digest(self) -> str:
        """Names what embeddings depend on: the vision transformer's shape and samples of its weights."""
        visual = [t for t in self.tensors.values() if canonical_name(t.name).startswith("visual.")]
        return digest_of_tensors(visual, repr(self.vision).encode())

    def _stored_dtype(self) -> str:
        stored = next((t.dtype for t in self.tensors.values()), "none")
        if stored not in DTYPES:
            raise CheckpointError(
                f"{self.path}: weights are stored as {stored}; one of {', '.join(DTYPES)} is supported"
            )
        return DTYPES[stored]
