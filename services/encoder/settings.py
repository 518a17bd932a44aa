"""The encoder's settings."""

from typing import Literal, Self, TypeAlias

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from services.common.linear import Quantization
from services.common.media.headers import MAX_SOURCE_PIXELS
from services.common.native import Kernels
from services.common.server import ServerSettings
from services.common.settings import CommonSettings
from services.common.workers.settings import WorkerSettings

EmbeddingDtype: TypeAlias = Literal["auto", "bfloat16", "int8"]


class EncoderSettings(CommonSettings, ServerSettings, WorkerSettings):
    """Read once, from the environment and the command line. A patch is a square of 14 pixels in most checkpoints."""

    model_config = SettingsConfigDict(
        frozen=True, env_prefix="DIPTYCH_ENCODER_", validate_by_name=True, extra="forbid", env_ignore_empty=True
    )

    batch_patches: int = Field(8192, ge=1, description="Patches that go through the model at once.")
    max_item_patches: int = Field(
        524_288, ge=1, description="Patches one image or video may have; more is refused as too large."
    )
    max_queued_patches: int = Field(
        1_048_576, ge=1, description="Patches of all requests under way; beyond them requests are told to come back."
    )
    kernels: Kernels = Field(
        "auto", description="auto: the project's compiled kernels, where there are some; torch: PyTorch's alone."
    )
    quantize: Quantization = Field(
        "none",
        description="int8: linear layers in whole numbers of 8 bits, on the CPU in float32, and with compiled kernels"
        " attention in pairs of bf16; none: as they are.",
    )
    embedding_dtype: EmbeddingDtype = Field(
        "auto",
        description="What embeddings are rounded to before they are cached or sent: bfloat16, or int8 with a scale a"
        " row; auto leaves them as computed.",
    )
    worker_cpu_s: float = Field(
        default=600.0, gt=0, description="Seconds of CPU that decoding one item may take, long videos included."
    )
    worker_timeout_s: float = Field(
        default=120.0, gt=0, description="Seconds on the clock that a worker may take from one slice to the next."
    )
    local_cache_bytes: int = Field(
        256 << 20, ge=0, description="Bytes of embeddings kept in this process in front of a shared cache."
    )
    max_file_bytes: int = Field(256 << 20, ge=1, description="Bytes of one item's files together.")
    max_source_pixels: int = Field(
        MAX_SOURCE_PIXELS, ge=1, description="Pixels that a picture or a frame may have before it is resized."
    )

    @model_validator(mode="after")
    def _queue_takes_the_largest_item(self) -> Self:
        if self.max_queued_patches < self.max_item_patches:
            raise ValueError("DIPTYCH_ENCODER_MAX_QUEUED_PATCHES must not be below DIPTYCH_ENCODER_MAX_ITEM_PATCHES")
        return self
