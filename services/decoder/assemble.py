"""Puts a decoder together from its settings and a checkpoint."""

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass

import structlog
import torch

from services.common.cache import EmbeddingCache
from services.common.checkpoint import Checkpoint, TextConfig
from services.common.linear import require_quantizable
from services.common.native import used_kernels
from services.common.settings import variable_name
from services.common.telemetry.process import Telemetry
from services.decoder.embeddings import TORCH_DTYPES
from services.decoder.engine import Engine, QueueLimits, Told, tell
from services.decoder.grammar import GrammarCompiler
from services.decoder.kv_cache import BlockPool, KVCache
from services.decoder.language_model import LanguageModel
from services.decoder.pace import Pace
from services.decoder.runner import ModelRunner
from services.decoder.sampler import Sampler
from services.decoder.scheduler import Scheduler, StepLimits
from services.decoder.service import DecoderService, ServiceFacts
from services.decoder.settings import DecoderSettings
from services.decoder.stream import telling_in
from services.decoder.telemetry import DecoderMetrics
from services.decoder.validation import Rules
from services.decoder.weights import load_language_model

log = structlog.get_logger()

CPU_MEMORY_SHARE, CUDA_MEMORY_SHARE = 0.25, 0.85
MANY_WEIGHTS = 1 << 24  # fewer are multiplied before helpers have begun and met again
CPU_BLOCK_SIZE, CUDA_BLOCK_SIZE = 16, 256  # flash-attn's paged kernels want multiples of 256


@dataclass(frozen=True, slots=True)
class EngineParts:
    """An engine that is not started yet, and the pool its blocks come from."""

    engine: Engine
    pool: BlockPool
    block_size: int


def build_decoder(
    settings: DecoderSettings, checkpoint: Checkpoint, cache: EmbeddingCache, telemetry: Telemetry
) -> tuple[Engine, DecoderService]:
    """Load the model and connect the parts, for the event loop that runs now. The engine is not started."""
    device = choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, checkpoint.weight_dtype, device)
    require_quantizable(settings.quantize, dtype, device, variable_name(DecoderSettings, "quantize"))
    model = load_language_model(
        checkpoint, TORCH_DTYPES[dtype], device, settings.quantize, prompt_weights=settings.prompt_weights
    )
    metrics = DecoderMetrics(telemetry.registry)
    parts = build_engine(settings, checkpoint, model, metrics.step.observe, telling_in(asyncio.get_running_loop()))
    metrics.watch(lambda: parts.engine.load, parts.pool.num_blocks)
    num_blocks, num_threads = parts.pool.num_blocks, torch.get_num_threads()
    log.info(
        "language weights loaded",
        device=str(device),
        dtype=dtype,
        num_blocks=num_blocks,
        num_threads=num_threads,
        kernels=used_kernels(),
    )
    rules = _rules(settings, checkpoint, num_blocks * parts.block_size)
    facts = ServiceFacts(
        model=checkpoint.name,
        width=checkpoint.text.hidden_size,
        dtype=dtype,
        quantization=settings.quantize,
        block_size=parts.block_size,
        num_blocks=num_blocks,
        prefix_cache=settings.prefix_cache,
        embedding_timeout_s=settings.embedding_timeout_s,
        slow_reader_timeout_s=settings.slow_reader_timeout_s,
        grammar_timeout_s=settings.grammar_timeout_s,
    )
    grammars = GrammarCompiler(checkpoint.path / "tokenizer.json", rules.vocab_size, rules.defaults.eos_token_ids)
    return parts.engine, DecoderService(parts.engine, rules, facts, cache, grammars, metrics)


def build_engine(
    settings: DecoderSettings,
    checkpoint: Checkpoint,
    model: LanguageModel,
    on_step: Callable[[float], None] = lambda _: None,
    deliver: Callable[[Told], None] = tell,
) -> EngineParts:
    """An engine around a loaded model. `on_step` is told each step's seconds, in the engine's thread; see Engine."""
    config, device = checkpoint.text, model.device
    block_size = settings.block_size or (CUDA_BLOCK_SIZE if device.type == "cuda" else CPU_BLOCK_SIZE)
    num_blocks = _num_blocks(settings, config, model.dtype, device, block_size)
    memory = KVCache(config, num_blocks, block_size, model.dtype, device)
    pool, pace = BlockPool(num_blocks), Pace(settings.max_stretch)
    limits = StepLimits(settings.max_sequences, settings.max_step_tokens)
    engine = Engine(
        runner=ModelRunner(model, memory, settings.max_sequences if settings.cuda_graphs else 0),
        scheduler=Scheduler(pool, block_size, limits, pace),
        sampler=Sampler((checkpoint.image_token_id, checkpoint.video_token_id), device),
        limits=QueueLimits(settings.max_waiting_requests, settings.max_waiting_tokens),
        on_step=on_step,
        deliver=deliver,
    )
    return EngineParts(engine, pool, block_size)


def useful_threads(config: TextConfig) -> int:
    """PyTorch's own number, one a core; one alone for a small model, whose steps would wait for helpers."""
    num_heads = config.num_attention_heads + config.num_key_value_heads  # twice, for both sides of the attention
    layer = config.hidden_size * (2 * num_heads * config.head_dim + 3 * config.intermediate_size)
    num_weights = config.num_hidden_layers * layer + config.vocab_size * config.hidden_size
    return torch.get_num_threads() if num_weights >= MANY_WEIGHTS else 1


def choose_device(wanted: str) -> torch.device:
    """ "auto" is CUDA where there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted)


def choose_dtype(wanted: str, stored: str, device: torch.device) -> str:
    """ "auto" is the checkpoint's own on CUDA, and float32, the exact one, on the CPU."""
    if wanted != "auto":
        return wanted
    return stored if device.type == "cuda" else "float32"


def _rules(settings: DecoderSettings, checkpoint: Checkpoint, kv_tokens: int) -> Rules:
    wanted = settings.max_context_tokens or checkpoint.text.max_position_embeddings
    return Rules(
        checkpoint_digest=checkpoint.digest(),
        vocab_size=checkpoint.text.vocab_size,
        image_token_id=checkpoint.image_token_id,
        video_token_id=checkpoint.video_token_id,
        merge_size=checkpoint.vision.spatial_merge_size,
        max_context_tokens=min(wanted, checkpoint.text.max_position_embeddings, kv_tokens),
        defaults=checkpoint.generation,
    )


def _num_blocks(
    settings: DecoderSettings, config: TextConfig, dtype: torch.dtype, device: torch.device, block_size: int
) -> int:
    """Blocks that the memory given to keys and values holds, at least one."""
    if settings.kv_cache_tokens:
        return -(-settings.kv_cache_tokens // block_size)
    token_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize
    return max((settings.kv_cache_bytes or _free_bytes(device)) // (token_bytes * block_size), 1)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * CUDA_MEMORY_SHARE)
    return int(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * CPU_MEMORY_SHARE)
