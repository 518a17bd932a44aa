"""From settings to a service that is ready: load, then wire together."""

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import structlog
import torch
from diptych.v1 import encoder_service_pb2

from services.common.background import beside
from services.common.cache import configured_cache, open_cache
from services.common.checkpoint import Checkpoint
from services.common.keys import CacheProfile
from services.common.media.reader import JOBS_MODULE, MediaReader
from services.common.native import used_kernels
from services.common.telemetry.metrics import CacheMetrics
from services.common.telemetry.process import Telemetry
from services.common.workers.pool import WorkerPool
from services.encoder.admission import Admission
from services.encoder.batcher import Batcher
from services.encoder.embedder import Embedder
from services.encoder.item import Limits
from services.encoder.patchify import Patchifier
from services.encoder.pipeline import Pipeline
from services.encoder.service import EncoderService
from services.encoder.settings import EncoderSettings
from services.encoder.slices import SliceEncoder
from services.encoder.telemetry import EncoderMetrics
from services.encoder.tiers import Tiers
from services.encoder.weights import Vision, load_vision

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint whose vision half is in memory."""

    checkpoint: Checkpoint
    vision: Vision
    embedder: Embedder
    num_threads: int  # of the model's thread, by which it is used from now on


def load_model(settings: EncoderSettings) -> Loaded:
    """Read the checkpoint's vision half and run it once. Raises CheckpointError."""
    num_threads = settings.threads or os.cpu_count() or 1
    torch.set_num_threads(num_threads)
    checkpoint = Checkpoint.open(settings.model)
    vision = load_vision(
        checkpoint,
        dtype=settings.dtype,
        device=settings.device,
        quantization=settings.quantize,
        embedding_dtype=settings.embedding_dtype,
    )
    pre = checkpoint.preprocessor
    embedder = Embedder(vision, Patchifier(pre))
    side = pre.patch_size * pre.merge_size
    # what does not fit together fails here and not at the first request
    embedder.embed([(np.zeros((side, side, 3), np.uint8),) * pre.temporal_patch_size])
    log.info("ready to encode", model=checkpoint.name, num_threads=num_threads, kernels=used_kernels())
    return Loaded(checkpoint, vision, embedder, num_threads)


@asynccontextmanager
async def encoder_service(
    settings: EncoderSettings, loaded: Loaded, telemetry: Telemetry
) -> AsyncIterator[EncoderService]:
    """A service whose model thread runs and whose caches are open, until the context ends."""
    tiers, metrics = _open_tiers(settings, telemetry.cache), EncoderMetrics(telemetry.registry)
    batcher = Batcher(
        loaded.embedder.embed,
        metrics,
        max_batch_patches=settings.batch_patches,
        prepare_thread=partial(torch.set_num_threads, loaded.num_threads),
    )
    admission = Admission(settings.max_queued_patches, batcher.seconds_for)
    metrics.watch(lambda: admission.num_patches, lambda: batcher.num_waiting)
    try:
        async with beside(batcher.run()), WorkerPool(JOBS_MODULE, settings) as pool:
            yield EncoderService(
                Pipeline(
                    SliceEncoder(batcher, _profile(loaded)),
                    tiers,
                    MediaReader(pool),
                    secret=settings.cache_secret.get_secret_value().encode(),
                    window_patches=settings.batch_patches,
                ),
                admission,
                preprocessor=loaded.checkpoint.preprocessor,
                limits=Limits(settings.max_item_patches, settings.max_file_bytes, settings.max_source_pixels),
                capabilities=_capabilities(settings, loaded, tiers.name),
            )
    finally:
        await tiers.close()


def _open_tiers(settings: EncoderSettings, metrics: CacheMetrics) -> Tiers:
    cache = configured_cache(settings, metrics)
    if not cache.shared:
        return Tiers(cache, None)
    local = open_cache("memory://", ttl_s=settings.cache_ttl_s, max_bytes=settings.local_cache_bytes, metrics=metrics)
    return Tiers(local, cache)


def _profile(loaded: Loaded) -> CacheProfile:
    return CacheProfile(loaded.vision.digest, loaded.vision.dtype, loaded.checkpoint.preprocessor.version)


def _capabilities(
    settings: EncoderSettings, loaded: Loaded, cache: str
) -> encoder_service_pb2.GetEncoderCapabilitiesResponse:
    checkpoint, pre = loaded.checkpoint, loaded.checkpoint.preprocessor
    return encoder_service_pb2.GetEncoderCapabilitiesResponse(
        model=checkpoint.name,
        vision_digest=loaded.vision.digest,
        checkpoint_digest=checkpoint.digest(),
        width=checkpoint.vision.hidden_size,
        dtype=loaded.vision.dtype,
        quantization=settings.quantize,
        patch_size=pre.patch_size,
        merge_size=pre.merge_size,
        temporal_patch_size=pre.temporal_patch_size,
        preprocessing=pre.version,
        max_patches=settings.max_item_patches,
        cache=cache,
        instance=secrets.token_hex(8),
    )
