"""What a failed call to another service means."""

import grpc
import structlog

from services.common.errors import DiptychError, from_rpc_error

log = structlog.get_logger()


def known_error(error: grpc.aio.AioRpcError, service: str) -> DiptychError:
    """The domain error behind a failed call to `service`, noted with the status that gRPC saw."""
    known = from_rpc_error(error, service)
    log.info("call failed", kind=service, code=error.code().name, reason=known.reason)
    return known
