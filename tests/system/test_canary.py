"""Nothing that a user sends or gets is written anywhere: strings that occur nowhere else, and a search for them."""

import base64
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.request import urlopen

import grpc
import pytest
from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import content_pb2 as content
from diptych.v1 import generation_pb2 as generation
from redis import Redis

from cli.stack import Stack
from services.common.identity import Identity, token_line
from tests.exactness import cases
from tests.harness import ask, gateway, running

CANARIES = {name: f"canary-{name}-5f0c7e" for name in ("prompt", "answer", "media", "url", "option", "token", "secret")}
PNG = cases.drawing(84, 112, 900) + CANARIES["media"].encode()  # what follows the last chunk is no part of the picture
NEW_PNG = cases.drawing(84, 112, 901) + CANARIES["media"].encode()
BROKEN = b"\x89PNG\r\n\x1a\n" + CANARIES["media"].encode()


def spellings(canary: str) -> Iterator[bytes]:
    """The canary as text, in hexadecimal, and the parts of its base64 that do not depend on what stands around it."""
    data = canary.encode()
    yield data
    yield data.hex().encode()
    for shift in range(3):
        yield base64.b64encode(b"\0" * shift + data)[4:-4]


def found(places: Mapping[str, bytes]) -> list[str]:
    """Which canary stands where."""
    return [
        f"{name} in {place}"
        for place, written in places.items()
        for name, canary in CANARIES.items()
        if any(spelling in written for spelling in spellings(canary))
    ]


def all_written(stack: Stack, folder: Path) -> dict[str, bytes]:
    """What the processes have written: logs, files in the working and temporary folders, metrics, all of Redis."""
    assert stack.redis is not None
    places = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "tokens"}
    for child in stack.children.values():
        if child.exit_code is None and child.metrics_address:
            with urlopen(f"http://{child.metrics_address}/metrics") as metrics:
                places[f"metrics of {child.name}"] = metrics.read()
    with Redis.from_url(stack.redis.url) as redis:
        for key in redis.scan_iter():
            places[f"redis {key!r}"] = key + bytes(redis.dump(key))
    return places


def asking(*parts: content.Part) -> content.Conversation:
    """A question with a canary in it, and maybe media."""
    text = content.Part(text=f"Say {CANARIES['prompt']}")
    return content.Conversation(messages=[content.Message(role=content.ROLE_USER, parts=[*parts, text])])


def image(**source: object) -> content.Part:
    """A picture."""
    return content.Part(image=content.Image(**source))  # type: ignore[arg-type]


async def fails(stack: Stack, conversation: content.Conversation, **options: object) -> None:
    """The request ends with an error."""
    with pytest.raises(grpc.aio.AioRpcError):
        await ask(stack.address, conversation, **options)


async def test_no_canary_is_written(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompt, answer, media, file name, options, token and secret are in no log, file, metric or value of Redis."""
    for folder in ("roots", "written/tmp", "written/work"):
        (tmp_path / folder).mkdir(parents=True)
    path = tmp_path / "roots" / f"{CANARIES['url']}.png"
    path.write_bytes(PNG)
    tokens = tmp_path / "written" / "tokens"
    tokens.write_text(token_line(CANARIES["token"], Identity("acme")))
    monkeypatch.setenv("DIPTYCH_TOKEN", CANARIES["token"])
    monkeypatch.chdir(tmp_path / "written" / "work")
    environment = {
        "DIPTYCH_CACHE_SECRET": CANARIES["secret"],
        "DIPTYCH_GATEWAY_TOKENS_FILE": str(tokens),
        "DIPTYCH_GATEWAY_FILE_ROOTS": str(tmp_path / "roots"),
        "TMPDIR": str(tmp_path / "written" / "tmp"),
    }
    with running(checkpoint, tmp_path / "written" / "logs", redis=True, cache_url=None, **environment) as stack:
        choice = generation.Choices(options=[CANARIES["answer"]])
        for source in (image(data=PNG), image(uri=path.as_uri()), image(data=PNG)):
            answer = await ask(stack.address, asking(source), choice=choice, max_tokens=64)
            assert answer.text == CANARIES["answer"]
        await fails(stack, asking(image(data=BROKEN)))
        await fails(stack, asking(image(uri=(path.parent / f"no-{CANARIES['url']}").as_uri())))
        await fails(stack, asking(image(uri=f"http://127.0.0.1/{CANARIES['url']}")))
        await fails(stack, asking(image(uri=f"{CANARIES['url']}:x")))
        await fails(stack, asking(image(digest=CANARIES["media"])))
        await fails(stack, asking(), regex=f"({CANARIES['option']}")
        await fails(stack, asking(), grammar=CANARIES["option"])
        await fails(stack, asking(), json_schema=f'{{"type": "{CANARIES["option"]}"}}')
        async with gateway(stack.address) as stub:
            endless = generation.Generation(max_tokens=4000, ignore_eos=True)
            call = stub.StreamChat(chat.StreamChatRequest(conversation=asking(), generation=endless), timeout=0.5)
            with pytest.raises(grpc.aio.AioRpcError):
                [event async for event in call]
        stack.children["encoder"].kill()
        await fails(stack, asking(image(data=NEW_PNG)))
        written = all_written(stack, tmp_path / "written")
    assert len([place for place in written if place.startswith("redis")]) >= 3
    assert len([place for place in written if place.endswith(".log")]) == 3
    assert found(written) == []


def test_the_search_finds_what_is_written() -> None:
    """Planted canaries are found, as text, in base64 and in hexadecimal: the test above can fail."""
    media = CANARIES["media"].encode()
    planted = {
        "text": b"{" + media + b"}",
        "hexadecimal": media.hex().encode(),
        **{f"base64 at {n}": base64.b64encode(os.urandom(n) + media + b"..") for n in range(3)},
    }
    assert found({**planted, "nothing": os.urandom(1000)}) == [f"media in {place}" for place in planted]
