"""Which endpoint takes a call."""

from collections import Counter
from dataclasses import dataclass

from gateway.reach.choice import LOAD_FACTOR, LOAD_SLACK, choose


@dataclass(eq=False)
class Server:
    """An endpoint as the choice sees it."""

    address: str
    load: float = 0.0
    is_full: bool = False


KEYS = [b"key %d" % number for number in range(2000)]


def servers(count: int) -> list[Server]:
    return [Server(f"ipv4:10.0.0.{number}:1") for number in range(count)]


def test_keys_spread_and_stay() -> None:
    """Each endpoint gets about its share, whatever their order; when one goes, only its own keys move."""
    four = servers(4)
    owners = {key: choose(key, four).address for key in KEYS}
    assert all(400 < count < 600 for count in Counter(owners.values()).values())
    assert owners == {key: choose(key, four[::-1]).address for key in KEYS}
    three = four[1:]
    moved = [key for key in KEYS if choose(key, three).address != owners[key]]
    assert {owners[key] for key in moved} == {four[0].address}


def test_nobody_is_loaded_far_above_the_others() -> None:
    """A key that everybody asks for spills over before its endpoint has much more than the mean."""
    four = servers(4)
    for _ in range(400):
        choose(b"hot", four).load += 1
        mean = sum(server.load for server in four) / 4
        assert max(server.load for server in four) <= LOAD_FACTOR * mean + LOAD_SLACK + 1


def test_a_full_endpoint_is_passed_over_while_another_is_not() -> None:
    """Memory that is nearly out counts like load; where all are full, the key's own endpoint is as good as any."""
    four = servers(4)
    own = choose(b"key", four)
    own.is_full = True
    assert choose(b"key", four) is not own
    for server in four:
        server.is_full = True
    assert choose(b"key", four) is own


def test_a_retry_goes_elsewhere_if_it_can() -> None:
    """The endpoint that was tried is taken again only when it is the only one."""
    two = servers(2)
    for key in KEYS[:50]:
        first = choose(key, two)
        assert choose(key, two, avoid=first) is not first
    assert choose(b"key", two[:1], avoid=two[0]) is two[0]


def test_who_has_it_already_is_asked_again() -> None:
    """The preferred one is taken however busy it is, unless it is to be avoided or gone."""
    two = servers(2)
    other = next(server for server in two if server is not choose(b"key", two))
    other.load = 100.0
    assert choose(b"key", two, prefer=other) is other
    assert choose(b"key", two, prefer=other, avoid=other) is not other
    assert choose(b"key", [server for server in two if server is not other], prefer=other) is not other
