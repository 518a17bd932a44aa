"""Pods come and go under load; `make cluster` does more of it."""

from collections import Counter
from pathlib import Path

from tests.cluster.cluster import running_cluster
from tests.cluster.load import steady_load


async def test_no_request_fails_while_pods_come_and_go(checkpoint: Path, tmp_path: Path) -> None:
    """A decoder more, an older one less, and a gateway replaced: all requests are answered, and all pods used."""
    async with (
        running_cluster(checkpoint, tmp_path, gateway=1, encoder=1, decoder=1) as cluster,
        steady_load(cluster.address, num_clients=2) as outcome,
    ):
        await cluster.scale_up("decoder")
        await cluster.take_down(cluster.pods["decoder"][0])
        await cluster.roll("gateway")
        num_answered = len(outcome.answered_s)
    assert outcome.failures == [], Counter((f.code, f.details) for f in outcome.failures)
    assert num_answered > 10
    assert set(cluster.exit_codes) == {0}
