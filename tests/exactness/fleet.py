"""One checkpoint behind several gateways, each with a decoder and a cache in one condition."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cli.children import Child
from cli.local_redis import LocalRedis
from tests.harness import wait_until

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Condition:
    """How a decoder runs and whether embeddings go through Redis."""

    name: str
    decoder: Mapping[str, str] = field(default_factory=dict)
    redis: bool = True


CONDITIONS = (
    Condition("whole prompts"),
    Condition("without Redis", redis=False),
    Condition("chunks of 1", {"MAX_STEP_TOKENS": "1", "PREFIX_CACHE": "false"}),
    Condition("chunks of 7", {"MAX_STEP_TOKENS": "7", "PREFIX_CACHE": "false"}),
    Condition("chunks of 64", {"MAX_STEP_TOKENS": "64", "PREFIX_CACHE": "false"}),
    Condition("little KV memory", {"KV_CACHE_TOKENS": "2000", "PREFIX_CACHE": "false"}),
)


@dataclass(frozen=True)
class Node:
    """A gateway's address and the decoder and encoder behind it."""

    gateway: str
    decoder: str
    encoder: str


@contextmanager
def fleet(model: Path, logs: Path, dtype: str = "float32", conditions: tuple[Condition, ...] = CONDITIONS) -> Iterator[dict[str, Node]]:
    """The nodes by the name of their condition. Raises AssertionError with what never listened."""
    logs.mkdir(parents=True, exist_ok=True)
    with ExitStack() as resources:
        redis = resources.enter_context(LocalRedis())
        common = {"DIPTYCH_MODEL": str(model), "DIPTYCH_DTYPE": dtype, "DIPTYCH_THREADS": "1"}

        def start(name: str, module: str, cache_url: str, **settings: str) -> Child:
            prefix = f"DIPTYCH_{module.rpartition('.')[2].upper()}_"
            own = {prefix + key: value for key, value in {"LISTEN": "127.0.0.1:0", **settings}.items()}
            child = Child(name.replace(" ", "-"), module, {**common, "DIPTYCH_CACHE_URL": cache_url, **own}, logs)
            resources.callback(child.stop, STOP_TIMEOUT_S)
            return child

        urls = {shared: redis.url if shared else "memory://" for shared in (True, False)}
        encoders = {shared: start(f"encoder {shared}", "services.encoder", urls[shared]) for shared in urls}
        decoders = {c.name: start(f"decoder {c.name}", "services.decoder", urls[c.redis], **c.decoder) for c in conditions}
        behind = {c.name: (listening(encoders[c.redis]), listening(decoders[c.name])) for c in conditions}
        gateways = {
            c.name: start(f"gateway {c.name}", "gateway", urls[c.redis], ENCODER=behind[c.name][0], DECODER=behind[c.name][1])
            for c in conditions
        }
        yield {c.name: Node(listening(gateways[c.name]), behind[c.name][1], behind[c.name][0]) for c in conditions}


def listening(child: Child) -> str:
    """The child's address, once it has one."""
    wait_until(lambda: child.address is not None or child.exit_code is not None, f"{child.name} listens", START_TIMEOUT_S)
    assert child.address is not None, f"{child.name} ended: {child.log_tail()}"
    return child.address
