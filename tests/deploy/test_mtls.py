"""The component mtls, its settings given to real processes: who can talk to whom."""

from collections.abc import Mapping
from pathlib import Path

import grpc
import pytest
from diptych.v1 import encoder_service_pb2, encoder_service_pb2_grpc
from diptych.v1.chat_service_pb2_grpc import ChatServiceStub

from services.common.channels import open_channel
from tests.certificates import Authority, Files
from tests.cluster.cluster import Role, running_cluster
from tests.cluster.load import answer
from tests.deploy.manifests import SETTINGS, Render, mounted
from tests.exactness import cases

ROLES: tuple[Role, ...] = ("gateway", "encoder", "decoder")
Secrets = Mapping[str, Mapping[str, Path]]


def settings_of(render: Render, role: Role, secrets: Secrets) -> dict[str, str]:
    """A role's TLS variables as the component sets them, with the files that its pod would see."""
    workload = render.get("Deployment", role)
    found = {}
    for name, value in render.environment(workload).items():
        if name.startswith("DIPTYCH_TLS_"):
            place = mounted(workload, value)
            assert place is not None, f"{role}: nothing is mounted at {value}"
            found[name] = str(secrets[place[0]][place[1]])
    return found


async def test_only_known_certificates_are_answered(most: Render, checkpoint: Path, tmp_path: Path) -> None:
    """A client's certificate opens the gateway and no more; a service's opens the encoder, and not the gateway."""
    services, clients = Authority(tmp_path / "services"), Authority(tmp_path / "clients", "clients")
    issued = {role: services.issue(role, host=role) for role in SETTINGS}
    secrets = {
        f"diptych-{role}-tls": {"tls.crt": files.cert, "tls.key": files.key, "ca.crt": services.ca}
        for role, files in issued.items()
    } | {"diptych-clients-authority": {"tls.crt": clients.ca}}
    settings = {role: settings_of(most, role, secrets) for role in ROLES}
    client = clients.issue("acme")

    def channel(address: str, shown: Files, name: str) -> grpc.aio.Channel:
        pair = shown.key.read_bytes(), shown.cert.read_bytes()
        return open_channel(address, grpc.ssl_channel_credentials(services.ca.read_bytes(), *pair), authority=name)

    async with running_cluster(checkpoint, tmp_path / "logs", settings, gateway=1, encoder=1, decoder=1) as cluster:
        encoder = cluster.pods["encoder"][0].child.address
        assert encoder is not None
        asked = encoder_service_pb2.GetEncoderCapabilitiesRequest()
        picture = cases.user("", cases.picture(5), "Describe.").to_conversation()
        async with channel(cluster.address, client, "gateway") as known, channel(encoder, client, "encoder") as refused:
            assert (await answer(ChatServiceStub(known), picture, 2)).token_ids
            with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
                await encoder_service_pb2_grpc.EncoderServiceStub(refused).GetEncoderCapabilities(asked, timeout=10)
        async with (
            channel(cluster.address, issued["gateway"], "gateway") as refused,
            channel(encoder, issued["gateway"], "encoder") as known,
        ):
            await encoder_service_pb2_grpc.EncoderServiceStub(known).GetEncoderCapabilities(asked, timeout=10)
            with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
                await answer(ChatServiceStub(refused), picture, 2)
