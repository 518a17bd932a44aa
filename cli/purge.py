"""`diptych purge`: removes what is kept of a tenant."""

import sys

from diptych.v1 import chat_service_pb2 as chat
from diptych.v1.chat_service_pb2_grpc import ChatServiceStub
from google.protobuf.json_format import MessageToJson

from cli.client import run_request


def run(address: str, tenant: str | None, *, as_json: bool) -> int:
    """Prints what was removed; 1 as well when a service has not answered, which may hold something still."""
    unreached = 0

    async def purge(stub: ChatServiceStub) -> None:
        nonlocal unreached
        removed = await stub.PurgeMedia(chat.PurgeMediaRequest(tenant=tenant))
        unreached = removed.num_unreached
        if as_json:
            print(MessageToJson(removed, preserving_proto_field_name=True, indent=None))
        else:
            print(f"removed {removed.num_values} values, {removed.num_bytes:,} bytes; {removed.num_blocks} blocks")

    code = run_request(address, purge)
    if unreached:
        print(f"error: {unreached} services did not answer; purge again when they do", file=sys.stderr)
    return code or int(bool(unreached))
