"""Pause and resume: what survives, what is renewed, what ends and how."""
import json
import os
import threading
import time
import urllib.error
import urllib.request

import pytest

from conftest import SDK, eventually, only_tls, read_until

KEEPER = open(os.path.join(os.path.dirname(__file__), "keeper.py")).read()
ALL_THERE = {"memory": True, "file": "56789", "deleted": "still here", "pipe": "in the pipe", "socketpair": "in the socket",
             "unix": "anew"}


def pause(sbx, **kwargs):
    return (sbx.beta_pause if SDK == "moru" else sbx.pause)(**kwargs)


def auto(sdk, wake=False, **kwargs):
    """A sandbox that is paused at its deadline."""
    if SDK == "moru":
        return sdk.Sandbox.beta_create(auto_pause=True, **kwargs)
    return sdk.Sandbox.create(lifecycle={"on_timeout": "pause", "auto_resume": wake}, **kwargs)


def keeper(sbx, envs=None, size=32):
    """Starts the program that holds one of everything; returns its pid."""
    sbx.files.write("/tmp/keeper.py", KEEPER)
    handle = sbx.commands.run("exec python3 /tmp/keeper.py %d" % size, background=True, envs=envs, timeout=0)
    eventually(lambda: curl(sbx, "/") is not None)
    handle.disconnect()
    return handle.pid


def curl(sbx, path):
    try:
        return json.loads(sbx.commands.run("curl -sf http://127.0.0.1:8000" + path).stdout)
    except Exception as e:  # noqa: BLE001 - the server may not be up yet
        if type(e).__name__ != "CommandExitException":
            raise
        return None


def stands_still(sbx, exc):
    """Whether it runs and its agent does not answer: which is no False, but an error that says so."""
    try:
        assert sbx.is_running() is True
        return False
    except exc.SandboxException as e:
        assert "its agent gave no answer in time" in str(e), e
        return True


def state_of(sdk, sbx):
    return sbx.get_info().state


def wait_paused(sdk, sbx):
    eventually(lambda: state_of(sdk, sbx) == sdk.SandboxState.PAUSED, every=0.2)


def test_pause_keeps_processes_memory_and_files(make, sdk):
    sbx = make(envs={"WHO": "the create"}, metadata={"a": "b"}, timeout=300)
    pid = keeper(sbx)
    sbx.files.write("kept.txt", "kept")
    before = curl(sbx, "/check")
    assert {k: before[k] for k in ALL_THERE} == ALL_THERE and before["env"] == "the create"
    sbx.files.write("last.txt", "the last instant")
    pause(sbx)
    assert state_of(sdk, sbx) == sdk.SandboxState.PAUSED
    sbx.connect()
    after = curl(sbx, "/check")
    assert {k: after[k] for k in ALL_THERE} == ALL_THERE, after
    assert after["pid"] == before["pid"] and after["ticks"] > before["ticks"]
    assert any(p.pid == pid for p in sbx.commands.list())
    assert sbx.files.read("kept.txt") == "kept" and sbx.files.read("last.txt") == "the last instant"
    assert sbx.commands.run("echo $WHO").stdout == "the create\n"


def test_pause_keeps_loopback_connections(make):
    sbx = make()
    keeper(sbx)
    assert curl(sbx, "/check")["loopback"] == "ping"
    pause(sbx)
    sbx.connect()
    assert curl(sbx, "/check")["loopback"] == "ping"


def test_pause_ends_connections_to_the_outside(make):
    """A read that waits ends at once with an error or an end, and never hangs."""
    sbx = make()
    keeper(sbx, envs={"OUTSIDE": "1.1.1.1:7"})
    assert curl(sbx, "/check")["outside"] == "open"
    pause(sbx)
    sbx.connect()
    end = eventually(lambda: (lambda o: o if o != "open" else None)(curl(sbx, "/check")["outside"]), 5, 0.1)
    assert end in ("ConnectionResetError", "ConnectionAbortedError", "TimeoutError", "end", "OSError"), end


def test_pause_keeps_id_token_metadata_and_deadline(make, sdk):
    sbx = make(timeout=300, metadata={"a b": "c&d=é+1"})
    before = sbx.get_info()
    pause(sbx)
    paused = sbx.get_info()
    assert (paused.sandbox_id, paused.metadata) == (before.sandbox_id, before.metadata)
    assert paused.state == sdk.SandboxState.PAUSED
    again = sdk.Sandbox.connect(sbx.sandbox_id, timeout=10)  # shorter: the deadline stays
    after = sbx.get_info()
    assert again.sandbox_id == sbx.sandbox_id and after.metadata == before.metadata
    assert after.end_at >= before.end_at
    assert again._envd_access_token == sbx._envd_access_token
    assert sbx.get_host(80) == again.get_host(80)
    assert sbx.commands.run("echo the old handle").stdout == "the old handle\n"
    pause(sbx)
    sdk.Sandbox.connect(sbx.sandbox_id, timeout=900)
    assert sbx.get_info().end_at > after.end_at


def test_pause_twice_and_kill_of_a_paused_one(make, sdk, exc):
    sbx = make()
    assert pause(sbx) in (True, None, sbx.sandbox_id)
    assert pause(sbx) in (False, None, sbx.sandbox_id)
    assert sbx.is_running() is False
    with pytest.raises(exc.SandboxException):
        sbx.commands.run("echo no")
    assert sdk.Sandbox.kill(sbx.sandbox_id) is True
    assert sdk.Sandbox.kill(sbx.sandbox_id) is False
    with pytest.raises(exc.NotFoundException):
        sdk.Sandbox.connect(sbx.sandbox_id)
    with pytest.raises(exc.NotFoundException):
        pause(sbx)


def test_paused_ones_are_listed(make, sdk):
    mark = "p%d" % time.time_ns()
    a, b = make(metadata={"mark": mark}), make(metadata={"mark": mark})
    pause(a)

    def listed(*states):
        p = sdk.Sandbox.list(query=sdk.SandboxQuery(metadata={"mark": mark}, state=list(states) or None))
        return [(i.sandbox_id, i.state) for i in p.next_items()]
    paused, running = sdk.SandboxState.PAUSED, sdk.SandboxState.RUNNING
    assert listed(paused) == [(a.sandbox_id, paused)]
    assert listed(running) == [(b.sandbox_id, running)]
    assert dict(listed()) == {a.sandbox_id: paused, b.sandbox_id: running}
    a.connect()
    assert listed(paused) == []


def test_trap09_and_wire4_16_half_done_sleep(make):
    """A sleep goes on where it was; the time of the pause is not slept."""
    sbx = make()
    handle = sbx.commands.run("sleep 2 && echo slept > /tmp/slept", background=True)
    handle.disconnect()
    time.sleep(0.7)
    pause(sbx)
    time.sleep(2)
    sbx.connect()
    assert eventually(lambda: sbx.files.exists("/tmp/slept") and sbx.files.read("/tmp/slept")) == "slept\n"


def test_background_command_is_connected_to_by_pid(make, sdk):
    sbx = make()
    handle = sbx.commands.run("i=0; while :; do i=$((i+1)); echo n$i; sleep 0.1; done", background=True, timeout=0)
    pid = handle.pid
    handle.disconnect()
    pause(sbx)
    sbx.connect()
    seen, killed = [], []
    again = sbx.commands.connect(pid, timeout=0)
    assert again.pid == pid

    def on_stdout(text):
        seen.append(text)
        if len("".join(seen).split()) >= 8 and not killed:
            killed.append(sbx.commands.kill(pid))
    with pytest.raises(sdk.CommandExitException):
        again.wait(on_stdout=on_stdout)
    assert killed == [True]
    numbers = [int(x[1:]) for x in "".join(seen).split()]
    assert len(numbers) >= 8 and numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_stdin_goes_on(make):
    sbx = make()
    handle = sbx.commands.run("read -r a; read -r b; echo \"$a $b\" > /tmp/both", background=True, stdin=True, timeout=0)
    sbx.commands.send_stdin(handle.pid, "one\n")
    handle.disconnect()
    pause(sbx)
    sbx.connect()
    sbx.commands.send_stdin(handle.pid, "two\n")
    assert eventually(lambda: sbx.files.exists("/tmp/both") and sbx.files.read("/tmp/both")) == "one two\n"


def test_terminal_is_listed_and_goes_on(make, sdk):
    sbx = make()
    term = sbx.pty.create(sdk.PtySize(rows=24, cols=80), timeout=0)
    sbx.pty.send_stdin(term.pid, b"export KEPT=yes; cd /usr; echo do''ne\n")
    read_until(term, b"done", stream=2)
    term.disconnect()
    pause(sbx)
    sbx.connect()
    assert any(p.pid == term.pid for p in sbx.commands.list())
    again = sbx.pty.connect(term.pid)
    out = []
    sbx.pty.send_stdin(term.pid, b"echo kept=$KEPT in $PWD; exit\n")
    assert again.wait(on_pty=lambda d: out.append(bytes(d))).exit_code == 0
    assert b"kept=yes in /usr" in b"".join(out)


def test_exec_stream_across_a_pause_ends_with_the_documented_exception(make, exc):
    sbx = make()
    raised = []

    def follow():
        try:
            sbx.commands.run("echo begun; sleep 300", timeout=0, on_stdout=lambda _: begun.set())
        except Exception as e:  # noqa: BLE001 - it is what the test is about
            raised.append((e, time.monotonic()))
    begun = threading.Event()
    t = threading.Thread(target=follow)
    t.start()
    assert begun.wait(60)
    pause(sbx)
    paused = time.monotonic()
    t.join(20)
    assert not t.is_alive(), "the stream hangs across a pause"
    assert isinstance(raised[0][0], exc.TimeoutException), repr(raised)
    sbx.connect()
    assert sbx.commands.run("pgrep -x sleep").stdout.strip()  # the command itself goes on
    assert raised[0][1] - paused < 10


def test_fault43_network_policy_survives(make, sdk):
    sbx = make(network={"deny_out": ["0.0.0.0/0"], "allow_out": ["1.1.1.1"]})

    def reaches(address):
        try:
            return sbx.commands.run("curl -s -o /dev/null --max-time 50 http://%s/" % address).exit_code == 0
        except sdk.CommandExitException:
            return False
    for _ in range(2):
        assert reaches("1.1.1.1") and not reaches("8.8.8.8")
        pause(sbx)
        sbx.connect()


def test_clock_is_right_after_a_pause(make):
    sbx = make()
    pause(sbx)
    time.sleep(3)
    sbx.connect()
    sbx.commands.run("true")
    best = 10
    for _ in range(5):
        t0 = time.time()
        guest = float(sbx.commands.run("date +%s.%N").stdout)
        t1 = time.time()
        best = min(best, 0 if t0 <= guest <= t1 else min(abs(guest - t0), abs(guest - t1)))
    assert best < 0.05


def test_fault22_auto_pause_loses_no_write_and_is_kept_across_resumes(sdk):
    """A writer appends until the very moment; no line is lost, and the next deadline pauses again."""
    sbx = auto(sdk, timeout=120)
    try:
        sbx.files.write("/tmp/w.py", "import time\ni=0\nf=open('/tmp/log','a',buffering=1)\n"
                        "while True:\n  i+=1\n  f.write('%d\\n'%i)\n  time.sleep(0.002)\n")
        handle = sbx.commands.run("exec python3 /tmp/w.py", background=True, timeout=0)
        handle.disconnect()
        eventually(lambda: sbx.files.exists("/tmp/log"))
        last = 0
        for _ in range(2):
            sbx.set_timeout(2)
            wait_paused(sdk, sbx)
            assert sbx.is_running() is False
            sbx.connect(timeout=120)
            lines = sbx.files.read("/tmp/log").split()
            assert len(lines) > last and lines == [str(i + 1) for i in range(len(lines))]
            last = len(lines)
        sbx.set_timeout(2)
        wait_paused(sdk, sbx)
        sbx.connect(timeout=2)
        wait_paused(sdk, sbx)
    finally:
        assert sbx.kill() is True


def test_fault22_twenty_pauses_lose_nothing(make):
    sbx = make(timeout=600)
    keeper(sbx, size=8)
    for i in range(20):
        sbx.files.write("round.txt", str(i))
        pause(sbx)
        sbx.connect()
        got = curl(sbx, "/check")
        assert {k: got[k] for k in ALL_THERE} == ALL_THERE, (i, got)
        assert sbx.files.read("round.txt") == str(i)


@only_tls
def test_server_is_reached_at_its_host_name_after_a_pause(make):
    sbx = make()
    keeper(sbx)
    url = "https://" + sbx.get_host(8000) + "/x"
    assert json.load(urllib.request.urlopen(url)) == {"hello": "/x"}
    pause(sbx)
    with pytest.raises(urllib.error.HTTPError) as e:
        urllib.request.urlopen(url)
    assert e.value.code == 502
    sbx.connect()
    assert json.load(urllib.request.urlopen(url)) == {"hello": "/x"}


e2b_only = pytest.mark.skipif(SDK != "e2b", reason="Moru's SDK has no such call")


@e2b_only
def test_files_only_keeps_files_and_boots(make, sdk):
    sbx = make(envs={"WHO": "the create"})
    keeper(sbx)
    sbx.files.write("kept.txt", "kept")
    machine = sbx.commands.run("cat /etc/machine-id").stdout
    assert sbx.pause(mode="filesystem") is True
    sbx.connect()
    assert sbx.files.read("kept.txt") == "kept"
    assert sbx.commands.run("echo $WHO").stdout == "the create\n"
    assert sbx.commands.run("cat /etc/machine-id").stdout == machine
    assert sbx.commands.list() == []


@e2b_only
def test_reboot_of_a_memory_pause_keeps_the_files(make):
    sbx = make(envs={"WHO": "the create"})
    keeper(sbx)
    sbx.files.write("kept.txt", "the last instant")
    before = sbx.commands.run("cat /etc/machine-id; hostname").stdout
    sbx.pause()
    sbx.connect(on_resume="reboot")
    assert sbx.commands.list() == []
    assert sbx.files.read("kept.txt") == "the last instant"
    assert sbx.files.exists("/tmp/keeper.py") and not sbx.files.exists("/tmp/keeper.deleted")
    assert sbx.commands.run("echo $WHO").stdout == "the create\n"
    assert sbx.commands.run("cat /etc/machine-id; hostname").stdout == before
    sbx.pause()
    sbx.connect()
    assert sbx.files.read("kept.txt") == "the last instant"


@e2b_only
def test_strict_pause(make, sdk, exc):
    """A guest whose agent stands still is not paused when that is asked for, and comes back by a reboot."""
    sbx = make(timeout=600)
    assert sbx.pause(strict=True) is True
    sbx.connect()
    sbx.files.write("kept.txt", "kept")
    try:
        sbx.commands.run("sleep 0.5; sudo kill -STOP 1", background=True).disconnect()
    except exc.SandboxException:
        pass  # nobody is there to answer any more
    eventually(lambda: stands_still(sbx, exc))
    with pytest.raises(exc.ServiceBusyException):
        sbx.pause(strict=True)
    assert state_of(sdk, sbx) == sdk.SandboxState.RUNNING
    assert sbx.pause() is True
    sbx.connect(on_resume="reboot")
    assert sbx.files.read("kept.txt") == "kept"


@e2b_only
def test_wake_on_sdk_call(sdk):
    with auto(sdk, wake=True, timeout=120) as sbx:
        pid = keeper(sbx)
        sbx.pause()
        assert sbx.is_running() is False and state_of(sdk, sbx) == sdk.SandboxState.PAUSED
        assert any(p.pid == pid for p in sbx.commands.list())
        assert state_of(sdk, sbx) == sdk.SandboxState.RUNNING
        sbx.pause()
        sbx.files.write("woken.txt", "by a file")
        sbx.pause()
        assert sbx.files.read("woken.txt") == "by a file"
        info = sbx.get_info()
        assert info.lifecycle == {"on_timeout": "pause", "auto_resume": True}


@e2b_only
def test_many_calls_at_once_wake_it_once(sdk):
    with auto(sdk, wake=True, timeout=120) as sbx:
        sbx.commands.run("echo > /tmp/starts")
        sbx.pause()
        out, errors = [], []

        def one(i):
            try:
                out.append(sbx.commands.run("echo %d" % i).stdout)
            except Exception as e:  # noqa: BLE001 - reported below
                errors.append(e)
        threads = [threading.Thread(target=one, args=(i,)) for i in range(20)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert not errors and sorted(out) == sorted("%d\n" % i for i in range(20))


@e2b_only
@only_tls
def test_wake_on_http_request(sdk):
    with auto(sdk, wake=True, timeout=120) as sbx:
        keeper(sbx)
        url = "https://" + sbx.get_host(8000) + "/woken"
        sbx.pause()
        assert json.load(urllib.request.urlopen(url, timeout=60)) == {"hello": "/woken"}
        assert state_of(sdk, sbx) == sdk.SandboxState.RUNNING


@e2b_only
def test_no_wake_without_auto_resume(make, sdk, exc):
    sbx = make()
    sbx.pause()
    with pytest.raises(exc.SandboxException):
        sbx.commands.run("echo no")
    assert state_of(sdk, sbx) == sdk.SandboxState.PAUSED


def test_async_pause_and_resume(sdk):
    import asyncio

    async def walk():
        sbx = await sdk.AsyncSandbox.create(timeout=120)
        try:
            handle = await sbx.commands.run("sleep 1000", background=True)
            await (sbx.beta_pause if SDK == "moru" else sbx.pause)()
            assert not await sbx.is_running()
            await sbx.connect()
            assert any(p.pid == handle.pid for p in await sbx.commands.list())
            await (sbx.beta_pause if SDK == "moru" else sbx.pause)()
            again = await sdk.AsyncSandbox.connect(sbx.sandbox_id)
            assert (await again.commands.run("echo again")).stdout == "again\n"
        finally:
            assert await sbx.kill()
    from test_async import run
    run(walk())
