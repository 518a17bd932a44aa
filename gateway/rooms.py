"""The gateway's parts, put together once at start."""

import ipaddress
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from diptych.v1 import decoder_service_pb2, generation_pb2

from services.common import keys
from services.common.cache import EmbeddingCache, configured_cache, open_cache
from services.common.checkpoint import Checkpoint
from services.common.errors import DiptychError, InvalidRequest, Violation
from services.common.media.reader import JOBS_MODULE, MediaReader
from services.common.telemetry.metrics import CacheMetrics
from services.common.telemetry.process import Telemetry
from services.common.workers.pool import WorkerPool

from .caller import Caller
from .capabilities import Capabilities, profile_of
from .decoding import Decoding
from .encoding import EncodeJob, Encoding
from .epochs import Epochs
from .fetch import Fetcher, FetchRules
from .generation import GenerationRules
from .headers import Headers
from .media import MediaItem, MediaLoader
from .media_store import MediaStore
from .prompt import Prompt, PromptBuilder
from .purge import Purge
from .quotas import Quota, Quotas
from .reach.kinds import Decoder, Encoder, Pools
from .reports import Reports
from .settings import GatewaySettings
from .sources import SourceRules, Sources
from .telemetry import GatewayMetrics
from .template import ChatTemplate, Spelling
from .tokenization import TextTokenizer


class Rooms:
    """One part for each step of the journey, and the few facts that they share."""

    def __init__(self, settings: GatewaySettings, checkpoint: Checkpoint, pools: Pools, telemetry: Telemetry) -> None:
        self.metrics = GatewayMetrics(telemetry.registry)
        self.limits = settings
        self.vocab_size = checkpoint.text.vocab_size
        self.merge_size = checkpoint.preprocessor.merge_size
        self.prompts = open_prompts(checkpoint)
        self.cache = configured_cache(settings, telemetry.cache)
        self._secret = settings.cache_secret.get_secret_value().encode()
        self.store = MediaStore(self.cache, _local_cache(settings, telemetry.cache), self._secret)
        self._workers = WorkerPool(JOBS_MODULE, settings)
        self._workers.start()
        self.quotas = _open_quotas(settings, self.metrics)
        self.epochs = Epochs(self.cache)
        self.purge = Purge(self.cache, self.store, pools)
        self.media = MediaLoader(
            Sources(_source_rules(settings), self.store, self.metrics),
            self.store,
            Headers(MediaReader(self._workers), self.cache, self._secret),
            checkpoint.preprocessor,
            settings,
            settings,
        )
        self.encoding = Encoding(pools.encoders, self.cache)
        self.decoding = Decoding(pools.decoders, self.encoding)
        self.generation = GenerationRules(
            checkpoint.generation, settings.greedy_default, settings.max_completion_tokens
        )
        self.capabilities = Capabilities(checkpoint, pools)
        self.reports = Reports(checkpoint, self.prompts, self.generation, self.capabilities, pools)

    def longest_prompt(self, max_context_tokens: int) -> int:
        """Tokens that a prompt may have: one of the context stays for the answer."""
        return min(max_context_tokens - 1, self.limits.max_prompt_tokens or max_context_tokens)

    def media_key(self, item: MediaItem, encoder: Encoder, caller: Caller) -> bytes:
        """The key of an item's embeddings."""
        plan = item.plan
        return keys.media_key(
            keys.tenant_key(self._secret, caller.owner.tenant, caller.owner.epoch),
            plan.kind,
            item.file_digests,
            plan.height,
            plan.width,
            plan.frame_indices,
            profile_of(encoder),
        )

    async def encode_jobs(
        self, items: Sequence[MediaItem], decoder: Decoder, caller: Caller, prefix: bytes, *, no_store: bool
    ) -> list[EncodeJob]:
        """What is to be encoded for a prompt. Raises InvalidRequest for items beyond what the encoder takes."""
        encoder = await caller.deadline.bound(self.capabilities.encoder(decoder, prefix))
        _require_fit(items, encoder.max_patches)
        return [
            EncodeJob(
                caller,
                item,
                index,
                self.media_key(item, encoder, caller),
                encoder,
                no_store=no_store,
                in_parts=decoder.accepts_parts,
            )
            for index, item in enumerate(items)
        ]

    async def ask_services(self, caller: Caller) -> tuple[Encoder | None, Decoder | None]:
        """What encoder and decoder run, as far as they can be asked or have been; None where nothing is known."""
        with suppress(DiptychError):  # who asks needs no service: an answer says less without
            decoder = await caller.deadline.bound(self.capabilities.decoder(b"", with_media=False))
            await caller.deadline.bound(self.capabilities.encoder(decoder, b""))
        return self.capabilities.last_encoder, self.capabilities.last_decoder

    def decoder_prompt(
        self,
        prompt: Prompt,
        jobs: Sequence[EncodeJob],
        generation: generation_pb2.Generation,
        decoder: Decoder,
        caller: Caller,
    ) -> decoder_service_pb2.Prompt:
        """The decoder's first message."""
        return decoder_service_pb2.Prompt(
            request_id=caller.request_id,
            tenant=caller.owner.tenant,
            epoch=caller.owner.epoch,
            token_ids=prompt.token_ids,
            media=[
                decoder_service_pb2.MediaPlacement(
                    offset=offset, grid=job.item.grid, media_key=job.media_key, kind=job.item.kind
                )
                for job, offset in zip(jobs, prompt.offsets, strict=True)
            ],
            generation=generation,
            checkpoint_digest=decoder.checkpoint_digest,
        )

    async def close(self) -> None:
        """Let go of the cache and of the worker processes."""
        await self._workers.close()
        await self.cache.close()


def open_prompts(checkpoint: Checkpoint) -> PromptBuilder:
    """The checkpoint's template and tokenizer. Raises TokenizerError or TemplateUnusableError."""
    image, video = checkpoint.image_token_id, checkpoint.video_token_id
    start, end = checkpoint.vision_start_token_id, checkpoint.vision_end_token_id
    structural = {image, video, start, end, *checkpoint.generation.eos_token_ids}
    tokenizer = TextTokenizer.open(checkpoint.path, structural)
    token_of = {token_id: token for token, token_id in tokenizer.control_tokens.items()}
    spelling = Spelling(
        image=token_of[start] + token_of[image] + token_of[end], video=token_of[start] + token_of[video] + token_of[end]
    )
    template = ChatTemplate.open(checkpoint.path, spelling)
    return PromptBuilder(template, tokenizer, image_pad_id=image, video_pad_id=video)


def _open_quotas(settings: GatewaySettings, metrics: GatewayMetrics) -> Quotas:
    default = Quota(
        settings.quota_calls,
        settings.quota_cost,
        settings.quota_cache_bytes,
        settings.quota_requests_per_minute,
        settings.quota_cost_per_minute,
    )
    return Quotas(default, settings.quotas_file, max_calls=settings.max_calls, refused=metrics.quota_refused)


def _local_cache(settings: GatewaySettings, metrics: CacheMetrics) -> EmbeddingCache:
    return open_cache("memory://", ttl_s=settings.cache_ttl_s, max_bytes=settings.media_memory_bytes, metrics=metrics)


def _source_rules(settings: GatewaySettings) -> SourceRules:
    rules = FetchRules(
        hosts=frozenset(settings.fetch_hosts),
        networks=tuple(ipaddress.ip_network(network) for network in settings.fetch_networks),
        timeout_s=settings.fetch_timeout_s,
        max_redirects=settings.fetch_max_redirects,
    )
    roots = tuple(Path(root) for root in settings.file_roots)
    return SourceRules(settings.max_media_bytes, roots, Fetcher(rules) if settings.allow_http else None)


def _require_fit(items: Sequence[MediaItem], max_patches: int) -> None:
    def num_patches(item: MediaItem) -> int:
        t, h, w = item.plan.grid
        return t * h * w

    violations = [
        Violation(item.field, f"becomes {num_patches(item)} patches; the encoder takes {max_patches}", "TOO_LARGE")
        for item in items
        if num_patches(item) > max_patches
    ]
    if violations:
        raise InvalidRequest(violations)
