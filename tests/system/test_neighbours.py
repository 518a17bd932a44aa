"""What a tenant has sent changes nothing of the work that is done for another: counted; test_timing.py measures."""

from urllib.request import urlopen

import grpc
import pytest
from diptych.v1 import chat_service_pb2 as chat
from diptych.v1 import content_pb2 as content
from diptych.v1 import generation_pb2 as generation
from diptych.v1.chat_service_pb2_grpc import ChatServiceStub
from prometheus_client.parser import text_string_to_metric_families

from cli.stack import Stack
from services.common.telemetry import catalogue
from tests.harness import CALL_TIMEOUT_S, Answer, collect, failure
from tests.system.neighbours import Neighbours, by_digest, nobodys_digest, picture, text

Work = dict[tuple[str, ...], float]

PREFIX_HITS = ("decoder", catalogue.DECODER_PREFIX_HITS.name)
PATCHES = ("encoder", f"{catalogue.ENCODER_BATCH_PATCHES.name}_sum")

# Everything that depends on what is cached. Bytes of the gateway are those of the files, whose sizes differ.
COUNTERS = {
    "gateway": [catalogue.CACHE_LOOKUPS.name, catalogue.GATEWAY_MEDIA_ITEMS.name],
    "encoder": [
        catalogue.CACHE_LOOKUPS.name,
        catalogue.CACHE_BYTES.name,
        f"{catalogue.ENCODER_BATCH_PATCHES.name}_sum",
    ],
    "decoder": [
        catalogue.CACHE_LOOKUPS.name,
        catalogue.CACHE_BYTES.name,
        catalogue.DECODER_PROMPT_TOKENS.name,
        PREFIX_HITS[1],
    ],
}


def counted(stack: Stack) -> Work:
    """What the services have done so far, by service, counter and labels."""
    work: Work = {}
    for service, names in COUNTERS.items():
        with urlopen(f"http://{stack.children[service].metrics_address}/metrics", timeout=5) as page:
            families = list(text_string_to_metric_families(page.read().decode()))
        for sample in (sample for family in families for sample in family.samples if sample.name in names):
            work[service, sample.name, *sample.labels.values()] = sample.value
    return work


async def asked(stub: ChatServiceStub, conversation: content.Conversation) -> Answer:
    """One token of an answer."""
    options = generation.Generation(max_tokens=1, temperature=0.0)
    request = chat.StreamChatRequest(conversation=conversation, generation=options)
    return await collect(stub.StreamChat(request, timeout=CALL_TIMEOUT_S))


def since(before: Work, stack: Stack) -> Work:
    """What they have done since; what has not moved is left out."""
    return {key: value - before.get(key, 0) for key, value in counted(stack).items() if value != before.get(key, 0)}


async def work_for(stack: Stack, stub: ChatServiceStub, conversation: content.Conversation) -> Work:
    """What one request makes the services do."""
    before = counted(stack)
    await asked(stub, conversation)
    return since(before, stack)


async def test_anothers_picture_takes_the_work_of_an_unseen_one(closed: Stack, neighbours: Neighbours) -> None:
    """As many patches are encoded, look-ups made, bytes moved and prompt tokens computed; for one's own far fewer."""
    theirs, unseen = picture(), picture()
    for conversation in (picture(), picture()):  # the beginning that all prompts share is in the decoder from now on
        await asked(neighbours.spy, conversation)
    await asked(neighbours.victim, theirs)
    for_theirs = await work_for(closed, neighbours.spy, theirs)
    assert for_theirs == await work_for(closed, neighbours.spy, unseen)
    own = await work_for(closed, neighbours.spy, theirs)
    assert for_theirs[PATCHES] > 0
    assert PATCHES not in own
    assert own[PREFIX_HITS] > for_theirs.get(PREFIX_HITS, 0)


async def test_anothers_text_takes_the_work_of_an_unseen_one(closed: Stack, neighbours: Neighbours) -> None:
    """As many of its tokens are found in the prefix cache as of one that nobody has asked; of one's own nearly all."""
    theirs, unseen = text(), text()
    await asked(neighbours.spy, text())
    await asked(neighbours.victim, theirs)
    for_theirs = await work_for(closed, neighbours.spy, theirs)
    assert for_theirs == await work_for(closed, neighbours.spy, unseen)
    own = await work_for(closed, neighbours.spy, theirs)
    assert own[PREFIX_HITS] > 10 * max(1, for_theirs.get(PREFIX_HITS, 0))


async def test_anothers_digest_is_like_one_of_nothing(closed: Stack, neighbours: Neighbours) -> None:
    """The same error after the same look-ups; one's own is found."""
    theirs = picture()
    await asked(neighbours.victim, theirs)

    async def refused(conversation: content.Conversation) -> tuple[str, str, Work]:
        before = counted(closed)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asked(neighbours.spy, conversation)
        return failure(caught.value).reason, failure(caught.value).message, since(before, closed)

    assert await refused(by_digest(theirs)) == await refused(nobodys_digest())
    assert (await asked(neighbours.victim, by_digest(theirs))).finished.usage.num_completion_tokens == 1


async def test_a_purge_empties_every_tier(neighbours: Neighbours) -> None:
    """Slice, manifest, file and its header in Redis, slice in encoder and decoder; other tenants keep theirs."""
    conversation = picture()
    for stub in (neighbours.third, neighbours.spy):
        await asked(stub, conversation)
    removed: chat.PurgeMediaResponse = await neighbours.third.PurgeMedia(chat.PurgeMediaRequest())
    assert (removed.num_values, removed.num_unreached) == (6, 0)
    assert removed.num_blocks > 0
    again: chat.PurgeMediaResponse = await neighbours.third.PurgeMedia(chat.PurgeMediaRequest())
    assert (again.num_values, again.num_blocks) == (0, 0)
    assert (await asked(neighbours.spy, conversation)).cache == [content.CACHE_RESULT_HIT]
