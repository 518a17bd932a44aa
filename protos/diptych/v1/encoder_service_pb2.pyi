from diptych.v1 import content_pb2 as _content_pb2
from diptych.v1 import embedding_pb2 as _embedding_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EncodeRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: EncodeHeader
    chunk: bytes
    def __init__(self, header: _Optional[_Union[EncodeHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class EncodeHeader(_message.Message):
    __slots__ = ("request_id", "tenant", "kind", "file_sizes", "resized_height", "resized_width", "frame_indices", "grid", "media_key", "inline_embeddings", "no_store", "epoch", "vision_digest", "max_cache_bytes", "stream")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    FILE_SIZES_FIELD_NUMBER: _ClassVar[int]
    RESIZED_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    RESIZED_WIDTH_FIELD_NUMBER: _ClassVar[int]
    FRAME_INDICES_FIELD_NUMBER: _ClassVar[int]
    GRID_FIELD_NUMBER: _ClassVar[int]
    MEDIA_KEY_FIELD_NUMBER: _ClassVar[int]
    INLINE_EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    NO_STORE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    VISION_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MAX_CACHE_BYTES_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    tenant: str
    kind: _content_pb2.MediaKind
    file_sizes: _containers.RepeatedScalarFieldContainer[int]
    resized_height: int
    resized_width: int
    frame_indices: _containers.RepeatedScalarFieldContainer[int]
    grid: _content_pb2.Grid
    media_key: bytes
    inline_embeddings: bool
    no_store: bool
    epoch: bytes
    vision_digest: str
    max_cache_bytes: int
    stream: bool
    def __init__(self, request_id: _Optional[str] = ..., tenant: _Optional[str] = ..., kind: _Optional[_Union[_content_pb2.MediaKind, str]] = ..., file_sizes: _Optional[_Iterable[int]] = ..., resized_height: _Optional[int] = ..., resized_width: _Optional[int] = ..., frame_indices: _Optional[_Iterable[int]] = ..., grid: _Optional[_Union[_content_pb2.Grid, _Mapping]] = ..., media_key: _Optional[bytes] = ..., inline_embeddings: _Optional[bool] = ..., no_store: _Optional[bool] = ..., epoch: _Optional[bytes] = ..., vision_digest: _Optional[str] = ..., max_cache_bytes: _Optional[int] = ..., stream: _Optional[bool] = ...) -> None: ...

class EncodeResponse(_message.Message):
    __slots__ = ("manifest", "chunk", "stored")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    manifest: Manifest
    chunk: _embedding_pb2.EmbeddingChunk
    stored: StoredSlices
    def __init__(self, manifest: _Optional[_Union[Manifest, _Mapping]] = ..., chunk: _Optional[_Union[_embedding_pb2.EmbeddingChunk, _Mapping]] = ..., stored: _Optional[_Union[StoredSlices, _Mapping]] = ...) -> None: ...

class StoredSlices(_message.Message):
    __slots__ = ("first_slice", "slice_keys")
    FIRST_SLICE_FIELD_NUMBER: _ClassVar[int]
    SLICE_KEYS_FIELD_NUMBER: _ClassVar[int]
    first_slice: int
    slice_keys: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, first_slice: _Optional[int] = ..., slice_keys: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Manifest(_message.Message):
    __slots__ = ("grid", "width", "dtype", "slice_keys", "stored", "num_cached_slices", "queue_ms", "encode_ms")
    GRID_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SLICE_KEYS_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_SLICES_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    ENCODE_MS_FIELD_NUMBER: _ClassVar[int]
    grid: _content_pb2.Grid
    width: int
    dtype: str
    slice_keys: _containers.RepeatedScalarFieldContainer[bytes]
    stored: bool
    num_cached_slices: int
    queue_ms: float
    encode_ms: float
    def __init__(self, grid: _Optional[_Union[_content_pb2.Grid, _Mapping]] = ..., width: _Optional[int] = ..., dtype: _Optional[str] = ..., slice_keys: _Optional[_Iterable[bytes]] = ..., stored: _Optional[bool] = ..., num_cached_slices: _Optional[int] = ..., queue_ms: _Optional[float] = ..., encode_ms: _Optional[float] = ...) -> None: ...

class GetEncoderCapabilitiesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetEncoderCapabilitiesResponse(_message.Message):
    __slots__ = ("model", "vision_digest", "checkpoint_digest", "width", "dtype", "patch_size", "merge_size", "temporal_patch_size", "preprocessing", "max_patches", "cache", "quantization", "instance")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VISION_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    PATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    MERGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    TEMPORAL_PATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSING_FIELD_NUMBER: _ClassVar[int]
    MAX_PATCHES_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    model: str
    vision_digest: str
    checkpoint_digest: str
    width: int
    dtype: str
    patch_size: int
    merge_size: int
    temporal_patch_size: int
    preprocessing: str
    max_patches: int
    cache: str
    quantization: str
    instance: str
    def __init__(self, model: _Optional[str] = ..., vision_digest: _Optional[str] = ..., checkpoint_digest: _Optional[str] = ..., width: _Optional[int] = ..., dtype: _Optional[str] = ..., patch_size: _Optional[int] = ..., merge_size: _Optional[int] = ..., temporal_patch_size: _Optional[int] = ..., preprocessing: _Optional[str] = ..., max_patches: _Optional[int] = ..., cache: _Optional[str] = ..., quantization: _Optional[str] = ..., instance: _Optional[str] = ...) -> None: ...

class PurgeEncoderRequest(_message.Message):
    __slots__ = ("tenant", "epoch")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    epoch: bytes
    def __init__(self, tenant: _Optional[str] = ..., epoch: _Optional[bytes] = ...) -> None: ...

class PurgeEncoderResponse(_message.Message):
    __slots__ = ("num_values", "num_bytes")
    NUM_VALUES_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    num_values: int
    num_bytes: int
    def __init__(self, num_values: _Optional[int] = ..., num_bytes: _Optional[int] = ...) -> None: ...
