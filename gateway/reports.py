"""What clients are told: `Started`, `Finished`, `GetModel`, `CountTokens`."""

from collections.abc import Sequence
from importlib.metadata import version

from diptych.v1 import chat_service_pb2, generation_pb2

from services.common.checkpoint import Checkpoint, ImageLimits

from .answer import Answer
from .caller import Caller
from .capabilities import Capabilities
from .decoding import DecodeJob
from .endpoints import described
from .generation import GenerationRules
from .media import MediaItem
from .prompt import Prompt, PromptBuilder
from .reach.kinds import Pools
from .stopwatch import Stopwatch


class Reports:
    """Writes them for one model."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        prompts: PromptBuilder,
        generation: GenerationRules,
        capabilities: Capabilities,
        pools: Pools,
    ) -> None:
        self._checkpoint = checkpoint
        self._prompts = prompts
        self._generation = generation
        self._capabilities = capabilities
        self._pools = pools

    def started(
        self, items: Sequence[MediaItem], prompt: Prompt, generation: generation_pb2.Generation, caller: Caller
    ) -> chat_service_pb2.Started:
        """What a request became."""
        return chat_service_pb2.Started(
            request_id=caller.request_id,
            model=self._checkpoint.name,
            media=[item.report() for item in items],
            num_prompt_tokens=len(prompt.token_ids),
            generation=generation,
        )

    def finished(self, prompt: Prompt, answer: Answer, job: DecodeJob, watch: Stopwatch) -> chat_service_pb2.Finished:
        """How it ended."""
        usage = chat_service_pb2.Usage(
            num_prompt_tokens=len(prompt.token_ids),
            num_media_tokens=prompt.num_media_tokens,
            num_completion_tokens=answer.num_tokens,
            num_cached_tokens=job.begun.num_cached_tokens,
        )
        timings = chat_service_pb2.Timings(encode_ms=job.encode_s * 1000, queue_ms=job.begun.queue_ms, **watch.laps)
        return chat_service_pb2.Finished(choices=answer.ends, usage=usage, timings=timings, media_cache=job.media_cache)

    def count(self, items: Sequence[MediaItem], prompt: Prompt) -> chat_service_pb2.CountTokensResponse:
        """What a conversation costs."""
        return chat_service_pb2.CountTokensResponse(
            num_prompt_tokens=len(prompt.token_ids),
            num_text_tokens=len(prompt.token_ids) - prompt.num_media_tokens,
            num_media_tokens=prompt.num_media_tokens,
            media=[item.report() for item in items],
        )

    def model(self) -> chat_service_pb2.GetModelResponse:
        """The model; what encoder and decoder alone know is empty while they have never been reached."""
        pre, encoder, decoder = (
            self._checkpoint.preprocessor,
            self._capabilities.last_encoder,
            self._capabilities.last_decoder,
        )
        return chat_service_pb2.GetModelResponse(
            model=self._checkpoint.name,
            versions=self.versions(),
            max_context_tokens=self.max_context_tokens,
            default_generation=self._generation.model_defaults(),
            patch_size=pre.patch_size,
            merge_size=pre.merge_size,
            temporal_patch_size=pre.temporal_patch_size,
            image_pixels=_limits(pre.image),
            video_pixels=_limits(pre.video),
            dtype=decoder.dtype if decoder is not None else "",
            vision_dtype=encoder.dtype if encoder is not None else "",
            endpoints=described(self._pools, self._capabilities),
        )

    @property
    def max_context_tokens(self) -> int:
        """The decoder's, else the checkpoint's own while no decoder has been reached."""
        decoder = self._capabilities.last_decoder
        return decoder.max_context_tokens if decoder is not None else self._checkpoint.text.max_position_embeddings

    def versions(self) -> chat_service_pb2.ModelVersions:
        """Versions and digests, as far as they are known."""
        encoder, decoder = self._capabilities.last_encoder, self._capabilities.last_decoder
        digest = self._capabilities.checkpoint_digest or (decoder.checkpoint_digest if decoder is not None else "")
        return chat_service_pb2.ModelVersions(
            diptych=version("diptych"),
            template_digest=self._prompts.template.digest,
            tokenizer_digest=self._prompts.tokenizer.digest,
            vision_digest=encoder.vision_digest if encoder is not None else "",
            checkpoint_digest=digest,
            preprocessing=self._checkpoint.preprocessor.version,
        )


def _limits(limits: ImageLimits) -> chat_service_pb2.GetModelResponse.PixelLimits:
    return chat_service_pb2.GetModelResponse.PixelLimits(min_pixels=limits.min_pixels, max_pixels=limits.max_pixels)
