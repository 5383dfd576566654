from __future__ import annotations

import asyncio
import threading

import pytest
import servers

from branchy_tf.errors import BranchyError
from branchy_tf.serving import AsyncEarlyExitClient

MODEL = servers.MODEL


def test_may_be_created_before_its_loop(fake, digits):
    client = AsyncEarlyExitClient(fake.address, MODEL)

    async def ask():
        return await asyncio.gather(*(client.predict(digits[:n]) for n in range(1, 20)))

    assert [len(answer) for answer in asyncio.run(ask())] == list(range(1, 20))
    with pytest.raises(BranchyError, match="another event loop"):
        asyncio.run(ask())


def test_a_cancelled_call_cancels_its_requests(fake, digits):
    ended = threading.Semaphore(0)

    def wait(_, context):
        context.add_callback(ended.release)
        fake.over.wait(60)

    fake.answer = wait

    async def ask():
        async with AsyncEarlyExitClient(fake.address, MODEL, max_rows=32) as client:
            await client.describe()
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.predict(digits, timeout=60), 0.3)
            return [ended.acquire(timeout=10) for _ in range(2)]

    assert asyncio.run(ask()) == [True, True]
