from diptych.v1 import content_pb2 as _content_pb2
from diptych.v1 import embedding_pb2 as _embedding_pb2
from diptych.v1 import generation_pb2 as _generation_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GenerateRequest(_message.Message):
    __slots__ = ("prompt", "reference", "chunk")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    prompt: Prompt
    reference: _embedding_pb2.EmbeddingReference
    chunk: _embedding_pb2.EmbeddingChunk
    def __init__(self, prompt: _Optional[_Union[Prompt, _Mapping]] = ..., reference: _Optional[_Union[_embedding_pb2.EmbeddingReference, _Mapping]] = ..., chunk: _Optional[_Union[_embedding_pb2.EmbeddingChunk, _Mapping]] = ...) -> None: ...

class Prompt(_message.Message):
    __slots__ = ("request_id", "tenant", "token_ids", "media", "generation", "checkpoint_digest", "no_store", "resumed", "epoch", "unhurried")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MEDIA_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    NO_STORE_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    UNHURRIED_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    tenant: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    media: _containers.RepeatedCompositeFieldContainer[MediaPlacement]
    generation: _generation_pb2.Generation
    checkpoint_digest: str
    no_store: bool
    resumed: _containers.RepeatedCompositeFieldContainer[ResumedChoice]
    epoch: bytes
    unhurried: bool
    def __init__(self, request_id: _Optional[str] = ..., tenant: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., media: _Optional[_Iterable[_Union[MediaPlacement, _Mapping]]] = ..., generation: _Optional[_Union[_generation_pb2.Generation, _Mapping]] = ..., checkpoint_digest: _Optional[str] = ..., no_store: _Optional[bool] = ..., resumed: _Optional[_Iterable[_Union[ResumedChoice, _Mapping]]] = ..., epoch: _Optional[bytes] = ..., unhurried: _Optional[bool] = ...) -> None: ...

class ResumedChoice(_message.Message):
    __slots__ = ("token_ids",)
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class MediaPlacement(_message.Message):
    __slots__ = ("offset", "grid", "media_key", "kind", "slice_keys")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    GRID_FIELD_NUMBER: _ClassVar[int]
    MEDIA_KEY_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SLICE_KEYS_FIELD_NUMBER: _ClassVar[int]
    offset: int
    grid: _content_pb2.Grid
    media_key: bytes
    kind: _content_pb2.MediaKind
    slice_keys: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, offset: _Optional[int] = ..., grid: _Optional[_Union[_content_pb2.Grid, _Mapping]] = ..., media_key: _Optional[bytes] = ..., kind: _Optional[_Union[_content_pb2.MediaKind, str]] = ..., slice_keys: _Optional[_Iterable[bytes]] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("tokens", "missing", "finished", "begun")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    BEGUN_FIELD_NUMBER: _ClassVar[int]
    tokens: TokenDelta
    missing: EmbeddingMissing
    finished: GenerateFinished
    begun: GenerateBegun
    def __init__(self, tokens: _Optional[_Union[TokenDelta, _Mapping]] = ..., missing: _Optional[_Union[EmbeddingMissing, _Mapping]] = ..., finished: _Optional[_Union[GenerateFinished, _Mapping]] = ..., begun: _Optional[_Union[GenerateBegun, _Mapping]] = ...) -> None: ...

class GenerateBegun(_message.Message):
    __slots__ = ("num_cached_tokens", "queue_ms")
    NUM_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    num_cached_tokens: int
    queue_ms: float
    def __init__(self, num_cached_tokens: _Optional[int] = ..., queue_ms: _Optional[float] = ...) -> None: ...

class TokenDelta(_message.Message):
    __slots__ = ("index", "token_ids", "logprobs")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    index: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[_generation_pb2.TokenLogprob]
    def __init__(self, index: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[_generation_pb2.TokenLogprob, _Mapping]]] = ...) -> None: ...

class EmbeddingMissing(_message.Message):
    __slots__ = ("media_index",)
    MEDIA_INDEX_FIELD_NUMBER: _ClassVar[int]
    media_index: int
    def __init__(self, media_index: _Optional[int] = ...) -> None: ...

class GenerateFinished(_message.Message):
    __slots__ = ("ends",)
    class End(_message.Message):
        __slots__ = ("reason", "stop_token_id", "num_tokens")
        REASON_FIELD_NUMBER: _ClassVar[int]
        STOP_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
        NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
        reason: _generation_pb2.FinishReason
        stop_token_id: int
        num_tokens: int
        def __init__(self, reason: _Optional[_Union[_generation_pb2.FinishReason, str]] = ..., stop_token_id: _Optional[int] = ..., num_tokens: _Optional[int] = ...) -> None: ...
    ENDS_FIELD_NUMBER: _ClassVar[int]
    ends: _containers.RepeatedCompositeFieldContainer[GenerateFinished.End]
    def __init__(self, ends: _Optional[_Iterable[_Union[GenerateFinished.End, _Mapping]]] = ...) -> None: ...

class GetDecoderCapabilitiesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetDecoderCapabilitiesResponse(_message.Message):
    __slots__ = ("model", "checkpoint_digest", "width", "dtype", "vocab_size", "max_context_tokens", "merge_size", "cache", "quantization", "accepts_parts", "accepts_slice_keys")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MERGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    ACCEPTS_PARTS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTS_SLICE_KEYS_FIELD_NUMBER: _ClassVar[int]
    model: str
    checkpoint_digest: str
    width: int
    dtype: str
    vocab_size: int
    max_context_tokens: int
    merge_size: int
    cache: str
    quantization: str
    accepts_parts: bool
    accepts_slice_keys: bool
    def __init__(self, model: _Optional[str] = ..., checkpoint_digest: _Optional[str] = ..., width: _Optional[int] = ..., dtype: _Optional[str] = ..., vocab_size: _Optional[int] = ..., max_context_tokens: _Optional[int] = ..., merge_size: _Optional[int] = ..., cache: _Optional[str] = ..., quantization: _Optional[str] = ..., accepts_parts: _Optional[bool] = ..., accepts_slice_keys: _Optional[bool] = ...) -> None: ...

class GetLoadRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetLoadResponse(_message.Message):
    __slots__ = ("num_running", "num_waiting", "num_used_blocks", "num_total_blocks", "block_size", "num_preemptions")
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    NUM_USED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOTAL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    num_running: int
    num_waiting: int
    num_used_blocks: int
    num_total_blocks: int
    block_size: int
    num_preemptions: int
    def __init__(self, num_running: _Optional[int] = ..., num_waiting: _Optional[int] = ..., num_used_blocks: _Optional[int] = ..., num_total_blocks: _Optional[int] = ..., block_size: _Optional[int] = ..., num_preemptions: _Optional[int] = ...) -> None: ...

class PurgeDecoderRequest(_message.Message):
    __slots__ = ("tenant", "epoch")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    epoch: bytes
    def __init__(self, tenant: _Optional[str] = ..., epoch: _Optional[bytes] = ...) -> None: ...

class PurgeDecoderResponse(_message.Message):
    __slots__ = ("num_blocks", "num_values", "num_bytes")
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_VALUES_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    num_blocks: int
    num_values: int
    num_bytes: int
    def __init__(self, num_blocks: _Optional[int] = ..., num_values: _Optional[int] = ..., num_bytes: _Optional[int] = ...) -> None: ...
