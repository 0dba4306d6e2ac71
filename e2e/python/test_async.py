"""The async half of the SDKs: the same wire, another client."""
import asyncio

from conftest import SDK


# The SDKs keep connections for the life of a loop, and a program has one.
LOOP = asyncio.new_event_loop()


def run(coro):
    return LOOP.run_until_complete(asyncio.wait_for(coro, 110))


async def eventually(check):
    async with asyncio.timeout(60):
        while not check():
            await asyncio.sleep(0.05)


def test_async_walk(sdk, exc):
    async def walk():
        async with await sdk.AsyncSandbox.create(timeout=120, envs={"A": "1"}) as sbx:
            assert (await sbx.commands.run("echo $A")).stdout == "1\n"
            await sbx.files.write("a.txt", "async")
            assert await sbx.files.read("a.txt") == "async"
            assert [e.name for e in await sbx.files.list("/home/user") if e.name == "a.txt"] == ["a.txt"]
            assert await sbx.is_running()
            info = await sbx.get_info()
            assert info.sandbox_id == sbx.sandbox_id
            await sbx.set_timeout(200)
            other = await sdk.AsyncSandbox.connect(sbx.sandbox_id)
            assert (await other.commands.run("cat a.txt")).stdout == "async"
        assert not await sbx.is_running()
    run(walk())


def test_async_background_and_stdin(sdk):
    async def walk():
        async with await sdk.AsyncSandbox.create(timeout=120) as sbx:
            seen = []
            h = await sbx.commands.run("cat", background=True, stdin=True, on_stdout=lambda d: seen.append(d))
            await sbx.commands.send_stdin(h.pid, "ping")
            await eventually(lambda: "".join(seen) == "ping")
            assert await h.kill()
            results = await asyncio.gather(*[sbx.commands.run("echo %d" % i) for i in range(20)])
            assert [r.stdout for r in results] == ["%d\n" % i for i in range(20)]
    run(walk())


def test_async_watch(sdk):
    async def walk():
        async with await sdk.AsyncSandbox.create(timeout=120) as sbx:
            await sbx.files.make_dir("w")
            events = []
            h = await sbx.files.watch_dir("w", on_event=lambda e: events.append(getattr(e.type, "value", e.type)))
            await sbx.files.write("w/f", "x")
            await eventually(lambda: len(events) >= 3)
            assert events == ["create", "chmod", "write"]
            await h.stop()
    run(walk())


def test_async_pty(sdk):
    async def walk():
        async with await sdk.AsyncSandbox.create(timeout=120) as sbx:
            out = []
            t = await sbx.pty.create(sdk.PtySize(rows=24, cols=80), on_data=lambda d: out.append(bytes(d)))
            await sbx.pty.send_stdin(t.pid, b"echo $((6*7)); exit\n")
            assert (await t.wait()).exit_code == 0
            assert b"42" in b"".join(out)
    run(walk())
