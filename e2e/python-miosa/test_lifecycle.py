"""Numbers, states and the life of a sandbox (checklist: numbers, what it is, states, create, env, list)."""
import asyncio
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import websockets
from miosa.errors import MiosaError, NotFoundError, ValidationError

from conftest import eventually


def test_defaults(make):
    s = make()
    d = s.data
    assert (d["cpu_count"], d["memory_mb"], d["disk_size_mb"]) == (1, 1024, 3072)
    assert d["template_id"] == "miosa-sandbox"
    assert d["idle_timeout_sec"] == 0 and d["always_on"] is False and d["persistent"] is False
    assert s.state == "running" and s.ready
    for field in ("id", "state", "template_id", "cpu_count", "memory_mb", "boot_ms", "boot_path", "created_at"):
        assert d[field] is not None, field
    assert isinstance(d["boot_ms"], int) and s.created_at.tzinfo is not None


def test_default_timeout_is_five_minutes(rest):
    d = rest.post("/sandboxes", json={}).raise_for_status().json()
    try:
        assert d["timeout_sec"] == 300 and 290_000 < d["timeout_remaining_ms"] <= 300_000
        assert d["data"]["id"] == d["id"]
    finally:
        rest.delete("/sandboxes/" + d["id"])


@pytest.mark.parametrize("field,value", [
    ("cpu_count", 0), ("cpu_count", 9), ("memory_mb", 0), ("memory_mb", 8193), ("disk_size_mb", 0), ("disk_size_mb", 10241),
    ("timeout_sec", 0), ("timeout_sec", 86401), ("idle_timeout_sec", -1), ("idle_timeout_sec", 86401),
    ("cpu_count", 1.5), ("memory_mb", "big"), ("size", "large"), ("size", "xl"), ("env", {"A": 1}), ("tags", 7),
])
def test_out_of_range_is_a_422_that_names_the_field(rest, field, value):
    r = rest.post("/sandboxes", json={field: value})
    body = r.json()
    assert r.status_code == 422, body
    assert body["code"] == body["error"]["code"] == "VALIDATION_FAILED"
    assert body["error"]["details"]["field"].startswith(field) and field in body["message"]
    assert body["error"]["request_id"] == r.headers["x-request-id"]


def test_client_raises_validation_error(client):
    with pytest.raises(ValidationError, match="cpu_count"):
        client.sandboxes.create(cpu_count=9, memory_mb=1024, disk_size_mb=3072)


@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 8192, 10240), (3, 700, 2000)])
def test_shapes_within_the_ranges(make, shape):
    s = make(cpu_count=shape[0], memory_mb=shape[1], disk_size_mb=shape[2])
    assert s.state == "running" and s.cpu_count == shape[0]
    assert s.memory_mb >= shape[1] and s.disk_size_mb >= shape[2]
    if shape[1] > 128:
        assert (s.memory_mb, s.disk_size_mb) == shape[1:]
    assert s.exec.run("nproc").stdout.strip() == str(shape[0])


@pytest.mark.parametrize("size,shape", [("xs", (1, 2048, 10240)), ("small", (2, 4096, 10240))])
def test_named_sizes(make, size, shape):
    s = make(size=size)
    assert (s.cpu_count, s.memory_mb, s.disk_size_mb, s.size) == (*shape, size)


def test_layout(sbx):
    r = sbx.exec.run("pwd; echo $HOME; which python; python -c 'import sys; print(sys.prefix)'; touch /workspace/x /tmp/x ~/x && ls -d /usr/local/bin")
    assert r.stdout.split() == ["/workspace", "/home/sandbox", "/opt/venv/bin/python", "/opt/venv", "/usr/local/bin"], r
    assert sbx.exec.run("/opt/venv/bin/python -c 'print(6*7)'").stdout == "42\n"


def test_context_manager_destroys(client):
    with pytest.raises(RuntimeError):
        with client.sandboxes.create(timeout_sec=60) as s:
            raise RuntimeError("on purpose")
    assert client.sandboxes.get(s.id).state == "destroyed"


def test_connect_and_names(client, make):
    name = "n-" + uuid.uuid4().hex[:8]
    s = make(name=name, metadata={"a": "b", "n": 1, "deep": {"x": [1, None]}}, tags=["t1", "t2"], slug="s-" + name)
    again = client.sandboxes.connect(s.id)
    assert again.exec.run("echo hi").stdout == "hi\n"
    assert again.metadata == {"a": "b", "n": 1, "deep": {"x": [1, None]}}
    assert client.sandboxes.get_by_name(name).id == s.id
    assert client.sandboxes.get_or_create(name).id == s.id
    with pytest.raises(NotFoundError):
        client.sandboxes.get_by_name("no-such-" + name)


def test_update(make, client):
    s = make(metadata={"a": "1", "b": "2"}, tags=["old"])
    s.update(name="renamed", metadata={"b": "3", "c": True}, idle_timeout_sec=500, timeout_sec=700, slug="sluggy")
    got = client.sandboxes.get(s.id)
    assert (got.name, got.slug, got.idle_timeout_sec, got.timeout_sec) == ("renamed", "sluggy", 500, 700)
    assert got.metadata == {"a": "1", "b": "3", "c": True}
    s.tags.set(["x", "y"])
    assert client.sandboxes.get(s.id).data["tags"] == ["x", "y"]
    s.update(always_on=True)
    assert s.always_on and s.timeout_remaining_ms is None
    with pytest.raises(ValidationError):
        s.update(timeout_sec=100000)


def test_extend_restarts_the_deadline(make):
    s = make(timeout_sec=100)
    s.extend(900)
    assert s.timeout_sec == 900 and s.timeout_remaining_ms > 890_000
    s.extend()
    assert s.timeout_sec == 900


def test_timeout_destroys_directly(make, client):
    s = make(timeout_sec=2)
    end = time.monotonic() + 1.5
    while time.monotonic() < end:  # activity does not move a wall-clock deadline
        s.exec.run("true")
    gone = eventually(lambda: (g := client.sandboxes.get(s.id)).destroyed_at and g)
    assert gone.state == "destroyed" and gone.data["destroy_reason"] == "timeout"
    for call in (lambda: s.exec.run("true"), lambda: s.extend(60), lambda: gone.exec.run("true")):
        with pytest.raises(MiosaError):
            call()


def test_idle_timeout(make, client):
    s = make(timeout_sec=300, idle_timeout_sec=2)
    end = time.monotonic() + 4
    while time.monotonic() < end:
        s.exec.run("true")
        time.sleep(0.3)
    assert client.sandboxes.get(s.id).state == "running"
    gone = eventually(lambda: (g := client.sandboxes.get(s.id)).state == "destroyed" and g)  # reads are no activity
    assert gone.data["destroy_reason"] == "idle"


def test_what_is_activity(make, client):
    """File writes and terminal input keep a sandbox alive, reading files does not."""
    written, typed, only_read = (make(timeout_sec=300, idle_timeout_sec=3) for _ in range(3))
    terminal = typed.terminal.create()

    async def use():
        async with websockets.connect(terminal["ws_url"]) as ws:
            end = time.monotonic() + 6
            while time.monotonic() < end:
                await ws.send(b"x")
                written.files.write("/workspace/f", "x")
                try:
                    only_read.files.list("/workspace")
                    client.sandboxes.get(only_read.id)
                except MiosaError:
                    pass
                await asyncio.sleep(0.5)

    asyncio.run(use())
    assert client.sandboxes.get(written.id).state == client.sandboxes.get(typed.id).state == "running"
    assert client.sandboxes.get(only_read.id).state == "destroyed"


def test_always_on_has_no_deadline(make):
    s = make(timeout_sec=1, always_on=True)
    time.sleep(2.5)
    assert s.refresh().state == "running" and s.exec.run("true").exit_code == 0


def test_env_is_read_only(make):
    s = make(env={"FOO": "bar", "EMPTY": ""})
    assert s.exec.run('echo "$FOO/$EMPTY"').stdout == "bar/\n"
    assert [(v["key"], v["value"]) for v in s.env.list()] == [("EMPTY", ""), ("FOO", "bar")]
    for call in (lambda: s.env.set([{"key": "A", "value": "1"}]), lambda: s.env.delete("FOO")):
        with pytest.raises(MiosaError) as e:
            call()
        assert e.value.status_code == 409 and e.value.code == "ENV_READ_ONLY"


def test_readiness(sbx):
    assert sbx.wait_until_ready() and sbx.wait_until_ready(stream=False)
    assert sbx.readiness()["status"] == "ready"


def test_list_filters(client, make):
    ws, user, project = (uuid.uuid4().hex for _ in range(3))
    a = make(external_workspace_id=ws, external_user_id=user, tags=["blue", "big"])
    b = make(external_workspace_id=ws, external_project_id=project, tags=["blue"])

    def ids(**kw):
        return {s.id for s in client.sandboxes.list(**kw)}

    assert ids(external_workspace_id=ws) == {a.id, b.id}
    assert ids(external_workspace_id=ws, external_user_id=user) == {a.id}
    assert ids(external_project_id=project) == {b.id}
    assert ids(external_workspace_id=ws, tags=["blue"]) == {a.id, b.id}
    assert ids(external_workspace_id=ws, tags=["blue", "big"]) == {a.id}
    assert ids(external_workspace_id=ws, state="paused") == set()
    assert a.external_workspace_id == ws
    assert {a.id, b.id} <= ids()
    b.destroy()
    assert ids(external_workspace_id=ws) == {a.id}
    assert ids(external_workspace_id=ws, state="destroyed") == {b.id}


def test_unknown_and_unusable_ids(client, rest):
    for bad in ("i" + "0" * 20, "no-such", "x" * 300):
        with pytest.raises(NotFoundError):
            client.sandboxes.get(bad)
    s = client.sandboxes.create(timeout_sec=60)
    s.destroy()
    assert s.state == "destroyed"
    assert rest.delete("/sandboxes/" + s.id).status_code == 404
    assert rest.post(f"/sandboxes/{s.id}/exec", json={"command": "true"}).status_code == 404
    assert rest.post(f"/sandboxes/{s.id}/resume", json={}).status_code == 404


def test_error_state_has_last_error(make, client):
    s = make(cpu_count=1, memory_mb=256, disk_size_mb=512)
    try:
        s.exec.run("python3 -c 'x = bytearray(1 << 30); x[::4096] = b\"a\" * len(x[::4096])'")
    except MiosaError:
        pass
    got = client.sandboxes.get(s.id)
    if got.state == "error":  # the whole machine ended, and not the process alone
        assert "oom" in got.data["metadata"]["last_error"]


def test_pause_and_resume_keep_memory(make):
    s = make()
    s.exec.run("echo kept > /workspace/f")
    p = s.processes.start("for i in $(seq 1 1000); do echo tick $i; sleep 0.1; done")
    s.pause()
    assert s.state == "paused"
    with pytest.raises(MiosaError):
        s.exec.run("true")
    s.pause()  # again: nothing changes
    s.resume()
    assert s.state == "running" and s.exec.run("cat /workspace/f").stdout == "kept\n"
    assert s.processes.get(p["pid"])["status"] == "running"
    a = s.processes.logs(p["pid"])
    eventually(lambda: s.processes.logs(p["pid"]) != a)
    s.processes.stop(p["pid"])


def test_stop_keeps_files_alone(make):
    s = make()
    s.exec.run("echo kept > /workspace/f; nohup sleep 1000 >/dev/null 2>&1 &")
    s.stop()
    assert s.state == "paused"
    s.resume()
    assert s.exec.run("cat /workspace/f; pgrep -x sleep").stdout == "kept\n"


def test_idempotency_key(client, rest):
    key = uuid.uuid4().hex
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: client.sandboxes.create(timeout_sec=60, idempotency_key=key), range(8)))
    assert len({s.id for s in made}) == 1
    other = rest.post("/sandboxes", json={"timeout_sec": 61}, headers={"Idempotency-Key": key})
    assert other.status_code == 422 and other.json()["code"] == "IDEMPOTENCY_KEY_REUSED"
    made[0].destroy()
    again = client.sandboxes.create(timeout_sec=60, idempotency_key=key)  # no second one, though it has ended
    assert again.id == made[0].id


def test_persistent_pauses_and_wakes(make, client):
    s = make(timeout_sec=2, persistent=True)
    s.exec.run("echo kept > /workspace/f")
    eventually(lambda: s.refresh().state == "paused", seconds=20)
    assert s.exec.run("cat /workspace/f").stdout == "kept\n"  # a use resumes it
    assert client.sandboxes.get(s.id).state == "running"


def test_entrypoint_and_snapshot(make, rest):
    s = make(entrypoint="echo from-entrypoint; sleep 1000")
    p = eventually(lambda: [p for p in s.processes.list() if p["name"] == "entrypoint"])[0]
    eventually(lambda: "from-entrypoint" in s.processes.logs(p["pid"]))
    s.exec.run("echo snapped > /workspace/f")
    snap = s.snapshots.create()
    new = rest.post("/sandboxes", json={"snapshot_id": snap["id"], "timeout_sec": 60}).json()
    assert rest.post(f"/sandboxes/{new['id']}/exec", json={"command": "cat f"}).json()["stdout"] == "snapped\n"
    rest.delete("/sandboxes/" + new["id"])


def test_a_crash_is_the_error_state(make, client, rest):
    s = make()
    with pytest.raises(MiosaError):
        for _ in range(50):
            s.exec.run("sudo kill -9 1; sleep 0.2")
    got = eventually(lambda: (g := client.sandboxes.get(s.id)).state != "running" and g)
    assert got.state == "error" and got.data["metadata"]["last_error"]
    assert s.id in {x.id for x in client.sandboxes.list(state="error")}
    with rest.stream("GET", f"/sandboxes/{s.id}/events") as r:
        assert "event: sandbox.error" in r.read().decode()  # the stream has its end


def test_network_is_isolated(sbx, make):
    other = make()
    other.processes.start("exec python3 -m http.server 8080")
    eventually(lambda: other.exec.run("curl -sf localhost:8080").exit_code == 0)
    ip = other.exec.run("hostname -I || ip -o -4 addr show scope global").stdout.split()[0]
    assert sbx.exec.run(f"curl -s -m 3 http://{ip}:8080").exit_code != 0
