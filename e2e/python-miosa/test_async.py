"""The asynchronous client."""
import asyncio

from miosa import AsyncMiosa


def test_async_walk():
    async def walk():
        client = AsyncMiosa()
        s = await client.sandboxes.create(timeout_sec=120)
        async with s:
            assert (await s.exec.run("echo hi")).stdout == "hi\n"
            await s.files.write("/workspace/f", b"\x00\x01")
            assert await s.files.read("/workspace/f") == b"\x00\x01"
            got = [e.type async for e in s.exec.stream("echo a; echo b >&2")]
            assert sorted(got) == ["exit", "stderr", "stdout"] and got[-1] == "exit"
            assert await s.wait_until_ready()
            outs = await asyncio.gather(*(s.exec.run(f"echo {i}") for i in range(20)))
            assert [o.stdout for o in outs] == [f"{i}\n" for i in range(20)]
        assert (await client.sandboxes.get(s.id)).state == "destroyed"

    asyncio.run(walk())
