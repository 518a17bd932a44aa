"""How soon the gateway wants a token."""

from diptych.v1 import chat_service_pb2 as pb

from gateway.prompt import PromptBuilder
from tests.gateway.client import GREEDY, Generation, chat, says, script
from tests.gateway.fakes import Stage


async def test_only_whole_answers_are_in_no_hurry(stage: Stage, prompts: PromptBuilder) -> None:
    """The decoder is told that nobody reads an answer before its end; not of one that a stop string may cut."""
    stage.decoder.scripts = [script(prompts, "ok")]
    await chat(stage, says("?"))
    await chat(stage, says("?"), Generation(temperature=0, stop=["END"]))
    request = pb.StreamChatRequest(conversation=says("?"), generation=GREEDY)
    async for _ in stage.stub.StreamChat(request, timeout=20):
        pass
    assert [prompt.unhurried for prompt in stage.decoder.prompts] == [True, False, False]
