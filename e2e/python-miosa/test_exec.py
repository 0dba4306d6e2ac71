"""Commands, processes and terminals (checklist: exec; wire: exec, streams, jobs, terminal)."""
import asyncio
import json
import time

import pytest
from miosa.errors import MiosaError, NotFoundError, ValidationError

from conftest import KEY, eventually


def test_run(sbx):
    r = sbx.exec.run("echo out; echo err >&2; exit 3")
    assert (r.stdout, r.stderr, r.exit_code) == ("out\n", "err\n", 3) and r.duration_ms >= 0
    assert sbx.exec.run("sleep 0.3").duration_ms >= 300
    assert sbx.exec.run("kill -9 $$").exit_code == 137


def test_run_options(sbx):
    r = sbx.exec.run('pwd; echo "$A"', {"cwd": "/tmp", "env": {"A": "one two"}})
    assert r.stdout == "/tmp\none two\n"
    r = sbx.exec.run("pwd", {"working_dir": "/usr"})
    assert r.stdout == "/usr\n"
    begin = time.monotonic()
    r = sbx.exec.run("echo before; sleep 30", {"timeout_sec": 1})
    assert time.monotonic() - begin < 10 and r.exit_code == 124 and r.stdout == "before\n"
    with pytest.raises(ValidationError) as e:
        sbx.exec.run("true", {"cwd": "/no/such/dir"})
    assert e.value.details["field"] == "cwd"
    with pytest.raises(ValidationError, match="command"):
        sbx.exec.run("  ")


def test_big_and_odd_output(sbx):
    assert len(sbx.exec.run("head -c 5000000 /dev/zero | tr '\\0' x").stdout) == 5_000_000
    assert sbx.exec.run("printf 'ünï\\n'").stdout == "ünï\n"
    assert sbx.exec.run("printf '\\xff'").exit_code == 0


def test_stream_is_progressive(sbx):
    at, types, lines = [], [], []
    for e in sbx.exec.stream("for i in 1 2 3; do echo $i; sleep 0.4; done; echo bad >&2; exit 5"):
        at.append(time.monotonic())
        types.append(e.type)
        lines.append(e.data.get("line"))
        last = e
    assert types == ["stdout"] * 3 + ["stderr", "exit"] and lines[:4] == ["1", "2", "3", "bad"]
    assert at[2] - at[0] > 0.5
    assert last.data["type"] == "exit" and last.data["exit_code"] == 5 and last.data["duration_ms"] >= 1000


def test_stream_without_a_newline(sbx):
    got = [(e.type, e.data.get("line")) for e in sbx.exec.stream("printf a; printf '\\nb'")]
    assert got == [("stdout", "a"), ("stdout", "b"), ("exit", None)]


def test_processes(sbx):
    p = sbx.processes.start("echo begin; sleep 1; echo $X; exit 4", env={"X": "end"}, name="job")
    assert isinstance(p["pid"], str) and p["status"] == "running" and p["name"] == "job"
    assert [x["pid"] for x in sbx.processes.list() if x["name"] == "job"] == [p["pid"]]
    events = list(sbx.processes.stream(p["pid"]))
    assert [(e["type"], e.get("line")) for e in events] == [("stdout", "begin"), ("stdout", "end"), ("exit", None)]
    got = sbx.processes.get(int(p["pid"]))
    assert (got["status"], got["exit_code"]) == ("exited", 4)
    assert sbx.processes.logs(p["pid"]) == "begin\nend\n" and sbx.processes.logs(p["pid"], tail=1) == "end\n"
    assert [e["type"] for e in sbx.processes.stream(p["pid"])][-1] == "exit"  # an ended one is readable still


def test_stop_process(sbx):
    p = sbx.processes.start("trap '' TERM; echo up; while true; do sleep 0.1; done")
    eventually(lambda: "up" in sbx.processes.logs(p["pid"]))
    sbx.processes.stop(p["pid"])
    assert sbx.processes.get(p["pid"])["status"] == "killed"
    sbx.processes.stop(p["pid"])
    with pytest.raises(NotFoundError):
        sbx.processes.get(999999)


def test_background_command(sbx):
    p = sbx.commands.run("sleep 60", background=True)
    assert p.pid > 0 and p.status()["status"] == "running"
    p.kill()
    eventually(lambda: p.status()["status"] != "running")


def test_commands_resource(client, sbx):
    r = client.commands.run(sbx.id, "cat; pwd", cwd="/tmp", stdin="typed\n")
    assert r["stdout"] == "typed\n/tmp\n" and r["exit_code"] == 0
    assert client.commands.run(sbx.id, "id -u", sudo=True)["stdout"] == "0\n"
    with pytest.raises(ValidationError) as e:
        client.commands.run(sbx.id, "true", timeout_seconds=601)
    assert e.value.code == "TIMEOUT_TOO_LONG"
    d = client.commands.run(sbx.id, "echo x; sleep 100", detached=True, name="dev")
    eventually(lambda: "x" in str(client.commands.logs(sbx.id, d["command_id"])))
    assert client.commands.get(sbx.id, d["id"])["status"] == "running"
    assert d["id"] in [c["id"] for c in client.commands.list(sbx.id)]
    client.commands.kill(sbx.id, d["id"])
    assert client.commands.get(sbx.id, d["id"])["status"] == "killed"


def test_detached_exec(rest, sbx):
    r = rest.post(f"/sandboxes/{sbx.id}/exec", json={"command": "echo job", "detached": True})
    assert r.status_code == 201 and r.json()["job_id"] == r.json()["pid"]


def test_logs(sbx):
    sbx.exec.run("echo a line for the log")
    eventually(lambda: "a line for the log" in str(sbx.logs.get(lines=50)))


async def talk(url, script, headers=None):
    import websockets

    shown = ""
    async with websockets.connect(url, additional_headers=headers or {}) as ws:
        for send, expect in script:
            if send is not None:
                await ws.send(send)
            while expect not in shown:
                m = await asyncio.wait_for(ws.recv(), 20)
                if isinstance(m, str):
                    return shown, json.loads(m)
                shown += m.decode(errors="replace")
        while True:
            m = await asyncio.wait_for(ws.recv(), 20)
            if isinstance(m, str):
                return shown, json.loads(m)
            shown += m.decode(errors="replace")


def test_terminal(sbx):
    t = sbx.terminal.create(cols=100, rows=30, env={"PS1": "ready> "})
    shown, end = asyncio.run(talk(t["ws_url"], [
        (b"stty size; echo $((6*7))\n", "42"),
        # Bash sets the size that it read before each prompt, so that it may undo this one.
        (json.dumps({"type": "resize", "cols": 120, "rows": 40}), ""),
        (b'until [ "$(stty size)" = "40 120" ]; do sleep 0.05; done; echo sized $((40+120))\n', "sized 160"),
        (b"tty; exit 9\n", "/dev/pts"),
    ]))
    assert "30 100" in shown and end == {"type": "exit", "exit_code": 9}


def test_terminal_ends_with_its_shell(sbx):
    """What the shell leaves in the background goes on, and holds nobody up."""
    t = sbx.terminal.create()
    _, end = asyncio.run(talk(t["ws_url"], [
        (b"setsid sh -c 'sleep 1; yes | head -c 500000; touch /tmp/written; sleep 600' & exit 3\n", "exit"),
    ]))
    assert end == {"type": "exit", "exit_code": 3}
    eventually(lambda: sbx.exec.run("test -e /tmp/written").exit_code == 0)


def test_terminal_is_typed_ahead(sbx):
    """Nothing that is typed before the shell asks for it is lost, nor out of order."""
    t = sbx.terminal.create()
    script = [(b"said() { echo heard-$1; }\n", "")] + [(b"said %d\n" % i, "") for i in range(20)]
    shown, end = asyncio.run(talk(t["ws_url"], script + [(b"exit\n", "heard-19")]))
    at = [shown.find(f"heard-{i}\r\n") for i in range(20)]
    assert at == sorted(at) and at[0] > 0 and end["exit_code"] == 0, shown


def test_terminal_stays_until_deleted(sbx):
    t = sbx.terminal.create()

    async def leave():
        import websockets

        url = t["ws_url"].split("?")[0]
        async with websockets.connect(url, additional_headers={"Authorization": "Bearer " + KEY}) as ws:
            await ws.send(b"MARK=still; echo o''k\n")
            shown = b""
            while b"ok" not in shown:
                shown += await asyncio.wait_for(ws.recv(), 20)

    asyncio.run(leave())
    shown, end = asyncio.run(talk(t["ws_url"], [(b"echo $MARK; exit\n", "still")]))
    assert end["exit_code"] == 0
    again = sbx.terminal.create()
    sbx.terminal.delete(again["session_id"])
    eventually(lambda: again["pid"] not in sbx.exec.run("ps -eo pid=").stdout.split())


def test_terminal_needs_its_token(sbx):
    import websockets

    t = sbx.terminal.create()
    other = sbx.terminal.create()
    for url in (t["ws_url"].split("?")[0], t["ws_url"][:-2] + "00", t["ws_url"].split("?")[0] + "?token=" + other["token"]):
        with pytest.raises(websockets.exceptions.InvalidStatus):
            asyncio.run(talk(url, [(None, "x")]))


def test_exec_on_a_stranger_is_404(client, sbx):
    with pytest.raises(MiosaError):
        client.commands.run("i" + "a" * 20, "true")
