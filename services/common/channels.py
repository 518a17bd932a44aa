"""Client channels between the services."""

import json

import grpc

from services.common.bearer import bearer_interceptors

KEEPALIVE_S = 10.0
MAX_MESSAGE_BYTES = 4 << 20

_SERVICE_CONFIG = json.dumps({"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}})
_OPTIONS = [
    ("grpc.service_config", _SERVICE_CONFIG),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.use_local_subchannel_pool", 1),  # else it shares another channel's connection, and its wait for the next try
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
]


def open_channel(  # noqa: PLR0913 -- what a channel is opened with
    address: str,
    credentials: grpc.ChannelCredentials | None = None,
    *,
    token: str = "",
    authority: str = "",
    max_send_bytes: int = MAX_MESSAGE_BYTES,
    keepalive_s: float = KEEPALIVE_S,
) -> grpc.aio.Channel:
    """A channel to every address behind `address` ("host:port" or a gRPC target such as "dns:///encoder:50051").

    Calls go round those that are healthy, so that a draining server gets no new ones. A peer that hangs or is gone is
    noticed within twice `keepalive_s`, and reconnects are tried at least every two seconds; the first try is at once,
    whatever another channel to the same address waits for. TLS with `credentials`; each call carries `token` if there
    is one. `authority` stands for the address where that was looked up before: certificates must name its host. A
    message of more than `max_send_bytes` fails here; -1 leaves it to the receiver.
    """
    options = [*_OPTIONS, *_keepalive_options(keepalive_s), ("grpc.max_send_message_length", max_send_bytes)]
    if authority:
        options.append(("grpc.default_authority", authority))
    interceptors = bearer_interceptors(token) if token else None
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=options, interceptors=interceptors)
    return grpc.aio.secure_channel(address, credentials, options=options, interceptors=interceptors)


def _keepalive_options(keepalive_s: float) -> list[tuple[str, int]]:
    """A ping after so long a silence, and as long for its answer.

    gRPC waits for the answer to any ping for `ping_timeout_ms`, a minute unless it is set, and up to 1.85 for that of
    keepalive, too (tried: a stopped server was noticed after 60 s whatever `keepalive_timeout_ms` said).
    """
    keepalive_ms = round(keepalive_s * 1000)
    return [
        ("grpc.keepalive_time_ms", keepalive_ms),
        ("grpc.keepalive_timeout_ms", keepalive_ms),
        ("grpc.http2.ping_timeout_ms", keepalive_ms),
    ]
