"""`diptych model`: what answers at an address."""

from diptych.v1 import chat_service_pb2 as chat
from diptych.v1.chat_service_pb2_grpc import ChatServiceStub
from google.protobuf.json_format import MessageToJson
from rich.console import Console
from rich.table import Table

from cli.client import run_request


def run(address: str, *, as_json: bool) -> int:
    """Prints the model's limits, defaults and versions."""

    async def show(stub: ChatServiceStub) -> None:
        model = await stub.GetModel(chat.GetModelRequest())
        if as_json:
            print(MessageToJson(model, preserving_proto_field_name=True, indent=None))
        else:
            Console(highlight=False).print(model_table(model))

    return run_request(address, show)


def model_table(model: chat.GetModelResponse) -> Table:
    """The answer as two columns."""
    table = Table(show_header=False, title=model.model, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("context", f"{model.max_context_tokens} tokens")
    table.add_row("arithmetic", f"language {model.dtype}, vision {model.vision_dtype}")
    merge = f"{model.merge_size}x{model.merge_size} patches a token"
    table.add_row("patches", f"{model.patch_size} pixels, {model.temporal_patch_size} frames a slice, {merge}")
    for name, limits in (("image", model.image_pixels), ("video frame", model.video_pixels)):
        table.add_row(f"{name} pixels", f"{limits.min_pixels} to {limits.max_pixels}")
    defaults = model.default_generation.ListFields()
    table.add_row("defaults", ", ".join(f"{field.name} {value:g}" for field, value in defaults))
    for field, version in model.versions.ListFields():
        table.add_row(field.name.replace("_", " "), version)
    for endpoint in model.endpoints:
        table.add_row(endpoint.service, f"{endpoint.address} {_state_of(endpoint)}")
    return table


def _state_of(endpoint: chat.GetModelResponse.Endpoint) -> str:
    """As in "usable", or "left out: checkpoint of gateway and decoder differs"."""
    state = endpoint.State.Name(endpoint.state).removeprefix("STATE_").replace("_", " ").lower()
    return f"{state}: {endpoint.difference}" if endpoint.difference else state
