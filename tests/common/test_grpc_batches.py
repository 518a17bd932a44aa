"""A call that ends early leaves nothing behind in grpc.aio."""

import subprocess
import sys

import pytest

OPERATION_BYTES = 96  # what grpc.aio leaves of each that it does not free

PROGRAM = """
import asyncio, gc, sys
import grpc
from services.common.grpc_batches import free_every_batch
from services.common.heap import Heap

NUM_CALLS = 500

async def silent(requests, context):
    if await anext(requests) == b"word":
        await context.write(b"word")
    await asyncio.Event().wait()

async def amid_a_read(call):
    await call.write(b"word")
    await call.read()
    reading = asyncio.ensure_future(call.read())
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)

async def before_the_answer(call):
    await call.write(b"silence")
    call.cancel()
    await call.code()

async def before_the_request(call):
    await asyncio.sleep(0)
    call.cancel()
    await call.code()

async def settled(heap):
    least = None
    while least is None or heap.num_used_bytes < least:  # the server still ends what was cancelled
        least = heap.num_used_bytes
        await asyncio.sleep(0.3)
        gc.collect()
    return least

async def num_bytes_kept(say, leave):
    heap, before = Heap(), 0
    for _ in range(2):  # once to warm up
        before = await settled(heap)
        for _ in range(NUM_CALLS):
            await leave(say())
    return (await settled(heap) - before) / NUM_CALLS

async def main():
    free_every_batch()
    server = grpc.aio.server()
    handlers = {"Say": grpc.stream_stream_rpc_method_handler(silent)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        print(await num_bytes_kept(channel.stream_stream("/test.Test/Say"), globals()[sys.argv[1]]))
    await server.stop(None)

asyncio.run(main())
"""


@pytest.mark.parametrize("left", ["amid_a_read", "before_the_answer", "before_the_request"])
def test_nothing_of_a_cancelled_call_stays(left: str) -> None:
    """Neither with who called nor with who was called: less than half an operation a call."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, left], capture_output=True, text=True, check=True)
    assert float(done.stdout) < OPERATION_BYTES / 2
