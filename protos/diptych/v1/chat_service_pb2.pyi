from diptych.v1 import content_pb2 as _content_pb2
from diptych.v1 import generation_pb2 as _generation_pb2
from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ChatRequest(_message.Message):
    __slots__ = ("conversation", "generation")
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    conversation: _content_pb2.Conversation
    generation: _generation_pb2.Generation
    def __init__(self, conversation: _Optional[_Union[_content_pb2.Conversation, _Mapping]] = ..., generation: _Optional[_Union[_generation_pb2.Generation, _Mapping]] = ...) -> None: ...

class ChatResponse(_message.Message):
    __slots__ = ("started", "choices", "usage", "timings")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    started: Started
    choices: _containers.RepeatedCompositeFieldContainer[Choice]
    usage: Usage
    timings: Timings
    def __init__(self, started: _Optional[_Union[Started, _Mapping]] = ..., choices: _Optional[_Iterable[_Union[Choice, _Mapping]]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ...) -> None: ...

class StreamChatRequest(_message.Message):
    __slots__ = ("conversation", "generation")
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    conversation: _content_pb2.Conversation
    generation: _generation_pb2.Generation
    def __init__(self, conversation: _Optional[_Union[_content_pb2.Conversation, _Mapping]] = ..., generation: _Optional[_Union[_generation_pb2.Generation, _Mapping]] = ...) -> None: ...

class StreamChatResponse(_message.Message):
    __slots__ = ("started", "text_delta", "finished")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    TEXT_DELTA_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    started: Started
    text_delta: TextDelta
    finished: Finished
    def __init__(self, started: _Optional[_Union[Started, _Mapping]] = ..., text_delta: _Optional[_Union[TextDelta, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ...) -> None: ...

class Started(_message.Message):
    __slots__ = ("request_id", "model", "media", "num_prompt_tokens", "generation")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MEDIA_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    media: _containers.RepeatedCompositeFieldContainer[_content_pb2.MediaReport]
    num_prompt_tokens: int
    generation: _generation_pb2.Generation
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., media: _Optional[_Iterable[_Union[_content_pb2.MediaReport, _Mapping]]] = ..., num_prompt_tokens: _Optional[int] = ..., generation: _Optional[_Union[_generation_pb2.Generation, _Mapping]] = ...) -> None: ...

class TextDelta(_message.Message):
    __slots__ = ("index", "text", "logprobs")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    index: int
    text: str
    logprobs: _containers.RepeatedCompositeFieldContainer[_generation_pb2.TokenLogprob]
    def __init__(self, index: _Optional[int] = ..., text: _Optional[str] = ..., logprobs: _Optional[_Iterable[_Union[_generation_pb2.TokenLogprob, _Mapping]]] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("choices", "usage", "timings", "media_cache")
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    MEDIA_CACHE_FIELD_NUMBER: _ClassVar[int]
    choices: _containers.RepeatedCompositeFieldContainer[ChoiceEnd]
    usage: Usage
    timings: Timings
    media_cache: _containers.RepeatedScalarFieldContainer[_content_pb2.CacheResult]
    def __init__(self, choices: _Optional[_Iterable[_Union[ChoiceEnd, _Mapping]]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., media_cache: _Optional[_Iterable[_Union[_content_pb2.CacheResult, str]]] = ...) -> None: ...

class ChoiceEnd(_message.Message):
    __slots__ = ("index", "finish_reason", "stop", "stop_token_id", "token_ids")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    index: int
    finish_reason: _generation_pb2.FinishReason
    stop: str
    stop_token_id: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, index: _Optional[int] = ..., finish_reason: _Optional[_Union[_generation_pb2.FinishReason, str]] = ..., stop: _Optional[str] = ..., stop_token_id: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Choice(_message.Message):
    __slots__ = ("index", "text", "end", "logprobs")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    index: int
    text: str
    end: ChoiceEnd
    logprobs: _containers.RepeatedCompositeFieldContainer[_generation_pb2.TokenLogprob]
    def __init__(self, index: _Optional[int] = ..., text: _Optional[str] = ..., end: _Optional[_Union[ChoiceEnd, _Mapping]] = ..., logprobs: _Optional[_Iterable[_Union[_generation_pb2.TokenLogprob, _Mapping]]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("num_prompt_tokens", "num_media_tokens", "num_completion_tokens", "num_cached_tokens")
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_MEDIA_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    num_prompt_tokens: int
    num_media_tokens: int
    num_completion_tokens: int
    num_cached_tokens: int
    def __init__(self, num_prompt_tokens: _Optional[int] = ..., num_media_tokens: _Optional[int] = ..., num_completion_tokens: _Optional[int] = ..., num_cached_tokens: _Optional[int] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("media_ms", "encode_ms", "queue_ms", "time_to_first_token_ms", "total_ms")
    MEDIA_MS_FIELD_NUMBER: _ClassVar[int]
    ENCODE_MS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    TIME_TO_FIRST_TOKEN_MS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MS_FIELD_NUMBER: _ClassVar[int]
    media_ms: float
    encode_ms: float
    queue_ms: float
    time_to_first_token_ms: float
    total_ms: float
    def __init__(self, media_ms: _Optional[float] = ..., encode_ms: _Optional[float] = ..., queue_ms: _Optional[float] = ..., time_to_first_token_ms: _Optional[float] = ..., total_ms: _Optional[float] = ...) -> None: ...

class BatchChatRequest(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[BatchChatItem]
    def __init__(self, items: _Optional[_Iterable[_Union[BatchChatItem, _Mapping]]] = ...) -> None: ...

class BatchChatItem(_message.Message):
    __slots__ = ("conversation", "generation")
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    conversation: _content_pb2.Conversation
    generation: _generation_pb2.Generation
    def __init__(self, conversation: _Optional[_Union[_content_pb2.Conversation, _Mapping]] = ..., generation: _Optional[_Union[_generation_pb2.Generation, _Mapping]] = ...) -> None: ...

class BatchChatResponse(_message.Message):
    __slots__ = ("index", "started", "text_delta", "finished", "failed")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    TEXT_DELTA_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    index: int
    started: Started
    text_delta: TextDelta
    finished: Finished
    failed: _status_pb2.Status
    def __init__(self, index: _Optional[int] = ..., started: _Optional[_Union[Started, _Mapping]] = ..., text_delta: _Optional[_Union[TextDelta, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., failed: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...

class CountTokensRequest(_message.Message):
    __slots__ = ("conversation",)
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    conversation: _content_pb2.Conversation
    def __init__(self, conversation: _Optional[_Union[_content_pb2.Conversation, _Mapping]] = ...) -> None: ...

class CountTokensResponse(_message.Message):
    __slots__ = ("num_prompt_tokens", "num_text_tokens", "num_media_tokens", "media")
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_TEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_MEDIA_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MEDIA_FIELD_NUMBER: _ClassVar[int]
    num_prompt_tokens: int
    num_text_tokens: int
    num_media_tokens: int
    media: _containers.RepeatedCompositeFieldContainer[_content_pb2.MediaReport]
    def __init__(self, num_prompt_tokens: _Optional[int] = ..., num_text_tokens: _Optional[int] = ..., num_media_tokens: _Optional[int] = ..., media: _Optional[_Iterable[_Union[_content_pb2.MediaReport, _Mapping]]] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("conversation", "generation")
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    conversation: _content_pb2.Conversation
    generation: _generation_pb2.Generation
    def __init__(self, conversation: _Optional[_Union[_content_pb2.Conversation, _Mapping]] = ..., generation: _Optional[_Union[_generation_pb2.Generation, _Mapping]] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("rendered_prompt", "token_ids", "media", "positions", "position_delta", "generation", "versions", "num_text_tokens", "num_media_tokens")
    class MediaSpan(_message.Message):
        __slots__ = ("report", "offset", "cache_key", "cached")
        REPORT_FIELD_NUMBER: _ClassVar[int]
        OFFSET_FIELD_NUMBER: _ClassVar[int]
        CACHE_KEY_FIELD_NUMBER: _ClassVar[int]
        CACHED_FIELD_NUMBER: _ClassVar[int]
        report: _content_pb2.MediaReport
        offset: int
        cache_key: str
        cached: _content_pb2.CacheResult
        def __init__(self, report: _Optional[_Union[_content_pb2.MediaReport, _Mapping]] = ..., offset: _Optional[int] = ..., cache_key: _Optional[str] = ..., cached: _Optional[_Union[_content_pb2.CacheResult, str]] = ...) -> None: ...
    class PositionRun(_message.Message):
        __slots__ = ("offset", "length", "start", "merged_grid")
        OFFSET_FIELD_NUMBER: _ClassVar[int]
        LENGTH_FIELD_NUMBER: _ClassVar[int]
        START_FIELD_NUMBER: _ClassVar[int]
        MERGED_GRID_FIELD_NUMBER: _ClassVar[int]
        offset: int
        length: int
        start: int
        merged_grid: _content_pb2.Grid
        def __init__(self, offset: _Optional[int] = ..., length: _Optional[int] = ..., start: _Optional[int] = ..., merged_grid: _Optional[_Union[_content_pb2.Grid, _Mapping]] = ...) -> None: ...
    RENDERED_PROMPT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MEDIA_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    POSITION_DELTA_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_TEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_MEDIA_TOKENS_FIELD_NUMBER: _ClassVar[int]
    rendered_prompt: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    media: _containers.RepeatedCompositeFieldContainer[ExplainResponse.MediaSpan]
    positions: _containers.RepeatedCompositeFieldContainer[ExplainResponse.PositionRun]
    position_delta: int
    generation: _generation_pb2.Generation
    versions: ModelVersions
    num_text_tokens: int
    num_media_tokens: int
    def __init__(self, rendered_prompt: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., media: _Optional[_Iterable[_Union[ExplainResponse.MediaSpan, _Mapping]]] = ..., positions: _Optional[_Iterable[_Union[ExplainResponse.PositionRun, _Mapping]]] = ..., position_delta: _Optional[int] = ..., generation: _Optional[_Union[_generation_pb2.Generation, _Mapping]] = ..., versions: _Optional[_Union[ModelVersions, _Mapping]] = ..., num_text_tokens: _Optional[int] = ..., num_media_tokens: _Optional[int] = ...) -> None: ...

class ModelVersions(_message.Message):
    __slots__ = ("diptych", "template_digest", "tokenizer_digest", "vision_digest", "checkpoint_digest", "preprocessing")
    DIPTYCH_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    VISION_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSING_FIELD_NUMBER: _ClassVar[int]
    diptych: str
    template_digest: str
    tokenizer_digest: str
    vision_digest: str
    checkpoint_digest: str
    preprocessing: str
    def __init__(self, diptych: _Optional[str] = ..., template_digest: _Optional[str] = ..., tokenizer_digest: _Optional[str] = ..., vision_digest: _Optional[str] = ..., checkpoint_digest: _Optional[str] = ..., preprocessing: _Optional[str] = ...) -> None: ...

class UploadMediaRequest(_message.Message):
    __slots__ = ("chunk",)
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    chunk: bytes
    def __init__(self, chunk: _Optional[bytes] = ...) -> None: ...

class UploadMediaResponse(_message.Message):
    __slots__ = ("digest", "num_bytes", "ttl_seconds")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    TTL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    digest: str
    num_bytes: int
    ttl_seconds: int
    def __init__(self, digest: _Optional[str] = ..., num_bytes: _Optional[int] = ..., ttl_seconds: _Optional[int] = ...) -> None: ...

class PurgeMediaRequest(_message.Message):
    __slots__ = ("tenant",)
    TENANT_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    def __init__(self, tenant: _Optional[str] = ...) -> None: ...

class PurgeMediaResponse(_message.Message):
    __slots__ = ("num_values", "num_bytes", "num_blocks", "num_unreached")
    NUM_VALUES_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_UNREACHED_FIELD_NUMBER: _ClassVar[int]
    num_values: int
    num_bytes: int
    num_blocks: int
    num_unreached: int
    def __init__(self, num_values: _Optional[int] = ..., num_bytes: _Optional[int] = ..., num_blocks: _Optional[int] = ..., num_unreached: _Optional[int] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model", "versions", "max_context_tokens", "default_generation", "patch_size", "merge_size", "temporal_patch_size", "image_pixels", "video_pixels", "dtype", "vision_dtype", "endpoints")
    class Endpoint(_message.Message):
        __slots__ = ("service", "address", "state", "checkpoint_digest", "difference")
        class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
            __slots__ = ()
            STATE_UNSPECIFIED: _ClassVar[GetModelResponse.Endpoint.State]
            STATE_USABLE: _ClassVar[GetModelResponse.Endpoint.State]
            STATE_LEFT_OUT: _ClassVar[GetModelResponse.Endpoint.State]
            STATE_SETTLING: _ClassVar[GetModelResponse.Endpoint.State]
            STATE_FAILING: _ClassVar[GetModelResponse.Endpoint.State]
            STATE_UNREACHABLE: _ClassVar[GetModelResponse.Endpoint.State]
        STATE_UNSPECIFIED: GetModelResponse.Endpoint.State
        STATE_USABLE: GetModelResponse.Endpoint.State
        STATE_LEFT_OUT: GetModelResponse.Endpoint.State
        STATE_SETTLING: GetModelResponse.Endpoint.State
        STATE_FAILING: GetModelResponse.Endpoint.State
        STATE_UNREACHABLE: GetModelResponse.Endpoint.State
        SERVICE_FIELD_NUMBER: _ClassVar[int]
        ADDRESS_FIELD_NUMBER: _ClassVar[int]
        STATE_FIELD_NUMBER: _ClassVar[int]
        CHECKPOINT_DIGEST_FIELD_NUMBER: _ClassVar[int]
        DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
        service: str
        address: str
        state: GetModelResponse.Endpoint.State
        checkpoint_digest: str
        difference: str
        def __init__(self, service: _Optional[str] = ..., address: _Optional[str] = ..., state: _Optional[_Union[GetModelResponse.Endpoint.State, str]] = ..., checkpoint_digest: _Optional[str] = ..., difference: _Optional[str] = ...) -> None: ...
    class PixelLimits(_message.Message):
        __slots__ = ("min_pixels", "max_pixels")
        MIN_PIXELS_FIELD_NUMBER: _ClassVar[int]
        MAX_PIXELS_FIELD_NUMBER: _ClassVar[int]
        min_pixels: int
        max_pixels: int
        def __init__(self, min_pixels: _Optional[int] = ..., max_pixels: _Optional[int] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_GENERATION_FIELD_NUMBER: _ClassVar[int]
    PATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    MERGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    TEMPORAL_PATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_PIXELS_FIELD_NUMBER: _ClassVar[int]
    VIDEO_PIXELS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    VISION_DTYPE_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    model: str
    versions: ModelVersions
    max_context_tokens: int
    default_generation: _generation_pb2.Generation
    patch_size: int
    merge_size: int
    temporal_patch_size: int
    image_pixels: GetModelResponse.PixelLimits
    video_pixels: GetModelResponse.PixelLimits
    dtype: str
    vision_dtype: str
    endpoints: _containers.RepeatedCompositeFieldContainer[GetModelResponse.Endpoint]
    def __init__(self, model: _Optional[str] = ..., versions: _Optional[_Union[ModelVersions, _Mapping]] = ..., max_context_tokens: _Optional[int] = ..., default_generation: _Optional[_Union[_generation_pb2.Generation, _Mapping]] = ..., patch_size: _Optional[int] = ..., merge_size: _Optional[int] = ..., temporal_patch_size: _Optional[int] = ..., image_pixels: _Optional[_Union[GetModelResponse.PixelLimits, _Mapping]] = ..., video_pixels: _Optional[_Union[GetModelResponse.PixelLimits, _Mapping]] = ..., dtype: _Optional[str] = ..., vision_dtype: _Optional[str] = ..., endpoints: _Optional[_Iterable[_Union[GetModelResponse.Endpoint, _Mapping]]] = ...) -> None: ...
