"""Which encoders and decoders get requests, and why the others do not, as `GetModel` tells it."""

from collections.abc import Mapping

from diptych.v1.chat_service_pb2 import GetModelResponse

from .capabilities import Capabilities
from .reach.endpoint import Endpoint, InfoT, Status, StubT
from .reach.kinds import Pools
from .reach.pool import Pool

_Described = GetModelResponse.Endpoint

_STATES = {
    Status.SETTLING: _Described.STATE_SETTLING,
    Status.USABLE: _Described.STATE_USABLE,
    Status.FAILING: _Described.STATE_FAILING,
    Status.UNREACHABLE: _Described.STATE_UNREACHABLE,
}


def described(pools: Pools, capabilities: Capabilities) -> list[GetModelResponse.Endpoint]:
    """All that are known, as they are now."""
    misfits = capabilities.misfits()
    return [*_all_of(pools.encoders, misfits), *_all_of(pools.decoders, misfits)]


def _all_of(pool: Pool[StubT, InfoT], misfits: Mapping[tuple[str, str], str]) -> list[GetModelResponse.Endpoint]:
    ordered = sorted(pool.endpoints, key=lambda endpoint: endpoint.address)
    return [_one(pool.kind.name, endpoint, misfits.get((pool.kind.name, endpoint.address))) for endpoint in ordered]


def _one(service: str, endpoint: Endpoint[StubT, InfoT], difference: str | None) -> GetModelResponse.Endpoint:
    return _Described(
        service=service,
        address=endpoint.address,
        state=_STATES[endpoint.status] if difference is None else _Described.STATE_LEFT_OUT,
        checkpoint_digest=endpoint.info.checkpoint_digest if endpoint.info is not None else "",
        difference=difference,
    )
