"""Every attribute that a span may have. There is no way to set another, so no prompt, answer, media or URL can be one.

`gen_ai.*`, `rpc.*` and `error.type` are OpenTelemetry's semantic conventions; they have no word for `diptych.*`.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TypeAlias

Value: TypeAlias = str | int | float | bool | Sequence[str]


class Attribute(StrEnum):
    """The list."""

    OPERATION = "gen_ai.operation.name"
    PROVIDER = "gen_ai.provider.name"
    REQUEST_MODEL = "gen_ai.request.model"
    MAX_TOKENS = "gen_ai.request.max_tokens"
    TEMPERATURE = "gen_ai.request.temperature"
    TOP_P = "gen_ai.request.top_p"
    TOP_K = "gen_ai.request.top_k"
    CHOICE_COUNT = "gen_ai.request.choice.count"
    INPUT_TOKENS = "gen_ai.usage.input_tokens"
    OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
    FINISH_REASONS = "gen_ai.response.finish_reasons"
    RESPONSE_ID = "gen_ai.response.id"
    RPC_SYSTEM = "rpc.system"
    RPC_SERVICE = "rpc.service"
    RPC_METHOD = "rpc.method"
    RPC_STATUS = "rpc.grpc.status_code"
    ERROR_TYPE = "error.type"
    MEDIA_COUNT = "diptych.media.count"
    MEDIA_CACHE = "diptych.media.cache"
    CACHED_TOKENS = "diptych.num_cached_tokens"


Attributes: TypeAlias = Mapping[Attribute, Value]
