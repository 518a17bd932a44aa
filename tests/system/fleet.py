"""An encoder, two decoders and a gateway, each a process."""

from pathlib import Path
from typing import Self

from diptych.v1 import decoder_service_pb2
from diptych.v1.decoder_service_pb2_grpc import DecoderServiceStub

from cli.children import Child
from services.common.channels import open_channel
from tests.harness import NUM_KV_TOKENS, wait_until

DECODERS = ("decoder 1", "decoder 2")


class Fleet:
    """Processes by their names, with `common` settings. They end when it is left."""

    def __init__(self, common: dict[str, str], folder: Path) -> None:
        few = {"DIPTYCH_THREADS": "1", "DIPTYCH_DTYPE": "float32", "DIPTYCH_DECODER_KV_CACHE_TOKENS": NUM_KV_TOKENS}
        few["DIPTYCH_CACHE_TIMEOUT_S"] = "2"  # a late look-up is a miss, which is not what is tested
        self._common, self._folder = {**few, **common}, folder
        self.children: dict[str, Child] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        for child in self.children.values():
            child.kill()

    def start_all(self, encoder: str = "services.encoder", decoder: str = "services.decoder", **gateway: str) -> None:
        """Start them; `encoder` and `decoder` are the modules of their processes."""
        self.start("encoder", encoder)
        for name in DECODERS:
            self.start(name, decoder)
        decoders = ",".join(self.address(name) for name in DECODERS)
        services = {"DIPTYCH_GATEWAY_ENCODER": self.address("encoder"), "DIPTYCH_GATEWAY_DECODER": decoders}
        self.start("gateway", "gateway", **services, **gateway)

    def start(self, name: str, module: str, **settings: str) -> None:
        """Start one; it need not listen yet."""
        self.children[name] = Child(name, module, {**self._common, **settings}, self._folder)

    def address(self, name: str) -> str:
        """Wait until it listens."""
        wait_until(lambda: self.children[name].address is not None, f"{name} listens", timeout_s=60)
        return self.children[name].address or ""

    async def num_sequences(self) -> dict[str, int]:
        """How many each decoder works on."""
        return {name: await self.num_sequences_of(name) for name in DECODERS}

    async def num_sequences_of(self, name: str) -> int:
        """How many one decoder works on."""
        async with open_channel(self.address(name)) as channel:
            load = await DecoderServiceStub(channel).GetLoad(decoder_service_pb2.GetLoadRequest(), timeout=10)
            return int(load.num_running + load.num_waiting)
