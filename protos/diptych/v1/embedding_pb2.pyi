from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class EmbeddingChunk(_message.Message):
    __slots__ = ("media_index", "byte_offset", "data", "dtype")
    MEDIA_INDEX_FIELD_NUMBER: _ClassVar[int]
    BYTE_OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    media_index: int
    byte_offset: int
    data: bytes
    dtype: str
    def __init__(self, media_index: _Optional[int] = ..., byte_offset: _Optional[int] = ..., data: _Optional[bytes] = ..., dtype: _Optional[str] = ...) -> None: ...

class EmbeddingReference(_message.Message):
    __slots__ = ("media_index", "slice_keys", "first_slice")
    MEDIA_INDEX_FIELD_NUMBER: _ClassVar[int]
    SLICE_KEYS_FIELD_NUMBER: _ClassVar[int]
    FIRST_SLICE_FIELD_NUMBER: _ClassVar[int]
    media_index: int
    slice_keys: _containers.RepeatedScalarFieldContainer[bytes]
    first_slice: int
    def __init__(self, media_index: _Optional[int] = ..., slice_keys: _Optional[_Iterable[bytes]] = ..., first_slice: _Optional[int] = ...) -> None: ...
