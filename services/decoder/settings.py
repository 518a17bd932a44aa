"""The decoder's settings, from DIPTYCH_* and DIPTYCH_DECODER_* variables or flags."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.common.linear import Quantization
from services.common.native import Kernels
from services.common.server import ServerSettings
from services.common.settings import CommonSettings


class DecoderSettings(CommonSettings, ServerSettings):
    """Everything an operator may choose."""

    model_config = SettingsConfigDict(
        frozen=True, env_prefix="DIPTYCH_DECODER_", validate_by_name=True, extra="forbid", env_ignore_empty=True
    )

    kv_cache_bytes: int = Field(
        0, ge=0, description="Memory for keys and values; 0 is a quarter of what is free (on CUDA 85 %)."
    )
    kv_cache_tokens: int = Field(0, ge=0, description="The same as a number of tokens; if set, it wins.")
    block_size: int = Field(0, ge=0, le=1024, description="Tokens in a block of the KV cache; 0 is 16 (on CUDA 256).")
    max_context_tokens: int = Field(0, ge=0, description="Most tokens of prompt and answer; 0 is the model's limit.")
    max_sequences: int = Field(64, ge=1, le=1024, description="Most sequences that one step continues.")
    max_step_tokens: int = Field(1024, ge=1, description="Most tokens that one step computes.")
    max_stretch: float = Field(
        1.6, gt=1, description="How much longer a prompt's chunk may make a step that also continues streams."
    )
    max_waiting_requests: int = Field(256, ge=1, description="Requests that may wait before more are refused.")
    max_waiting_tokens: int = Field(1 << 18, ge=1, description="Tokens of prompts that may wait.")
    prefix_cache: bool = Field(True, description="Whether prompts that start alike share computed blocks.")
    kernels: Kernels = Field(
        "auto", description="auto: the project's compiled kernels, where there are some; torch: PyTorch's alone."
    )
    quantize: Quantization = Field(
        "none", description="int8: linear layers in whole numbers of 8 bits, on the CPU in float32; none: as they are."
    )
    prompt_weights: bool = Field(
        True,
        description="On the CPU in float32, without compiled kernels: whether weights that a checkpoint stores in "
        "16 bits, and that are read as such for answers, are kept in 32 bits too, which makes prompts faster and takes "
        "three times the memory.",
    )
    cuda_graphs: bool = Field(
        True, description="On CUDA with flash-attn: whether streams are continued by captured graphs."
    )
    local_cache_bytes: int = Field(
        0,
        ge=0,
        description="Bytes of embeddings kept in this process, in front of a shared cache; 0 is none.",
    )
    embedding_timeout_s: float = Field(
        60, gt=0, description="Seconds that a prompt waits for the next part of its embeddings."
    )
    grammar_timeout_s: float = Field(5, gt=0, description="Seconds that a grammar may take to compile.")
