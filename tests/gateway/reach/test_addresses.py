"""What a setting may say of where a service is."""

import pytest

from gateway.reach.addresses import AddressError, Target


async def many(host: str, port: int) -> list[str]:
    """A name with three addresses, one of them told twice."""
    assert (host, port) == ("encoder", 50051)
    return ["10.0.0.2", "10.0.0.1", "10.0.0.2", "fd00::1"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("127.0.0.1:7", ["ipv4:127.0.0.1:7"]),
        ("[::1]:7", ["ipv6:[::1]:7"]),
        ("ipv4:10.0.0.1:1,10.0.0.2:2", ["ipv4:10.0.0.1:1", "ipv4:10.0.0.2:2"]),
        ("unix:/run/encoder.sock", ["unix:/run/encoder.sock"]),
        ("encoder:50051", ["ipv4:10.0.0.1:50051", "ipv4:10.0.0.2:50051", "ipv6:[fd00::1]:50051"]),
        ("dns:///encoder:50051", ["ipv4:10.0.0.1:50051", "ipv4:10.0.0.2:50051", "ipv6:[fd00::1]:50051"]),
    ],
)
async def test_a_setting_becomes_grpc_targets(text: str, found: list[str]) -> None:
    """Each form of address; a name stands for all its addresses, and certificates must say the name."""
    target = Target.parse(text)
    assert await target.resolve(many) == found
    assert target.authority == ("encoder:50051" if "encoder:5" in text else "")


@pytest.mark.parametrize("text", ["", "encoder", ":50051", "encoder:grpc", "xds:///encoder:50051"])
def test_what_names_no_address_is_refused(text: str) -> None:
    """A setting without a host or a port is an error at start."""
    with pytest.raises(AddressError):
        Target.parse(text)
