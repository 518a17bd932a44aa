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


# The longest case just fits into little memory; in hardly any, three long answers do not fit together.
CONDITIONS = (
    Condition("whole prompts"),
    Condition("without Redis", redis=False),
    Condition("chunks of 1", {"MAX_STEP_TOKENS": "1", "PREFIX_CACHE": "false"}),
    Condition("chunks of 7", {"MAX_STEP_TOKENS": "7", "PREFIX_CACHE": "false"}),
    Condition("chunks of 64", {"MAX_STEP_TOKENS": "64", "PREFIX_CACHE": "false"}),
    Condition("little KV memory", {"KV_CACHE_TOKENS": "2000", "BLOCK_SIZE": "2", "PREFIX_CACHE": "false"}),
    Condition("hardly any KV memory", {"KV_CACHE_TOKENS": "400", "BLOCK_SIZE": "2", "PREFIX_CACHE": "false"}),
)


@dataclass(frozen=True)
class Node:
    """A gateway's address and the decoder and encoder behind it."""

    gateway: str
    decoder: str
    encoder: str


@contextmanager
def fleet(
    model: Path, logs: Path, dtype: str = "float32", conditions: tuple[Condition, ...] = CONDITIONS
) -> Iterator[dict[str, Node]]:
    """The nodes by the name of their condition. Raises AssertionError with what never listened."""
    logs.mkdir(parents=True, exist_ok=True)
    with ExitStack() as resources:
        redis = resources.enter_context(LocalRedis())
        common = {
            "DIPTYCH_MODEL": str(model),
            "DIPTYCH_DTYPE": dtype,
            "DIPTYCH_THREADS": "1",
            "DIPTYCH_CACHE_TIMEOUT_S": "2",
        }

        def start(module: str, condition: Condition, **settings: str) -> Child:
            prefix = f"DIPTYCH_{module.rpartition('.')[2].upper()}_"
            own = {prefix + name: value for name, value in {"LISTEN": "127.0.0.1:0", **settings}.items()}
            cache = {"DIPTYCH_CACHE_URL": redis.url if condition.redis else "memory://"}
            name = f"{module} {condition.name}".replace(" ", "-")
            child = Child(name, module, {**common, **cache, **own}, logs)
            resources.callback(child.stop, STOP_TIMEOUT_S)
            return child

        shared = {condition.redis: condition for condition in conditions}  # one encoder with Redis, one without
        encoders = {has_redis: start("services.encoder", condition) for has_redis, condition in shared.items()}
        decoders = [start("services.decoder", condition, **condition.decoder) for condition in conditions]
        behind = [(listening(encoders[c.redis]), listening(d)) for c, d in zip(conditions, decoders, strict=True)]
        gateways = [
            start("gateway", condition, ENCODER=encoder, DECODER=decoder)
            for condition, (encoder, decoder) in zip(conditions, behind, strict=True)
        ]
        nodes = [Node(listening(g), decoder, encoder) for g, (encoder, decoder) in zip(gateways, behind, strict=True)]
        yield {condition.name: node for condition, node in zip(conditions, nodes, strict=True)}


def listening(child: Child) -> str:
    """The child's address, once it has one."""
    wait_until(lambda: bool(child.address or child.exit_code is not None), f"{child.name} listens", START_TIMEOUT_S)
    assert child.address is not None, f"{child.name} ended: {child.log_tail()}"
    return child.address
