# Walks the control plane with the package named on the command line.
import importlib, os, sys
from datetime import datetime, timedelta, timezone

pkg = importlib.import_module(sys.argv[1])
Sandbox, SandboxQuery = pkg.Sandbox, pkg.SandboxQuery
is_e2b = sys.argv[1] == "e2b"
NotFound = pkg.NotFoundException

s = Sandbox.create("base", timeout=120, metadata={"a b": "c&d=é+1"}, envs={"X": "1"})
assert s.sandbox_id.isalnum()

info = Sandbox.get_info(s.sandbox_id) if is_e2b else s.get_info()
assert info.sandbox_id == s.sandbox_id and info.metadata == {"a b": "c&d=é+1"}, info
assert info.end_at - info.started_at == timedelta(seconds=120), info
assert info.state.value == "running", info

paused = Sandbox.list(query=SandboxQuery(state=[pkg.SandboxState.PAUSED]))
assert paused.next_items() == []
other = Sandbox.create("base")
found = Sandbox.list(query=SandboxQuery(metadata={"a b": "c&d=é+1"}, state=[pkg.SandboxState.RUNNING, pkg.SandboxState.PAUSED]))
assert [i.sandbox_id for i in found.next_items()] == [s.sandbox_id]
pages, ids = Sandbox.list(limit=1), []
while pages.has_next:
    ids += [i.sandbox_id for i in pages.next_items()]
assert sorted(ids) == sorted([s.sandbox_id, other.sandbox_id]), ids

Sandbox.set_timeout(s.sandbox_id, 600)
assert Sandbox.get_info(s.sandbox_id).end_at > info.end_at
before = Sandbox.get_info(s.sandbox_id).end_at
again = Sandbox.connect(s.sandbox_id, timeout=1)
assert again.sandbox_id == s.sandbox_id and Sandbox.get_info(s.sandbox_id).end_at == before
Sandbox.connect(s.sandbox_id)

now = datetime.now(timezone.utc)
for kw in ({}, {"start": now - timedelta(minutes=5), "end": now + timedelta(minutes=5)}):
    m = Sandbox.get_metrics(s.sandbox_id, **kw)
    assert len(m) == 1 and m[0].cpu_count == 2, m
assert Sandbox.get_metrics(s.sandbox_id, start=now + timedelta(minutes=5)) == []

if is_e2b:
    Sandbox.update_network(s.sandbox_id, {"deny_out": ["0.0.0.0/0"]})
    assert Sandbox.get_info(s.sandbox_id).network["deny_out"] == ["0.0.0.0/0"]

assert Sandbox.kill(s.sandbox_id, api_key=os.environ["OTHER_KEY"]) is False
assert Sandbox.kill(s.sandbox_id) is True
assert Sandbox.kill(s.sandbox_id) is False
for call in (lambda: Sandbox.get_info(s.sandbox_id), lambda: Sandbox.connect(s.sandbox_id),
             lambda: Sandbox.set_timeout(s.sandbox_id, 5)):
    try:
        call()
        raise SystemExit("a killed sandbox answered")
    except NotFound:
        pass
try:
    Sandbox.create("base", api_key="e2b_" + "0" * 40)
    raise SystemExit("a wrong key was good")
except pkg.AuthenticationException:
    pass
private = Sandbox.create("base", network={"allow_public_traffic": False})
assert private.traffic_access_token
try:
    Sandbox.create("nope")
    raise SystemExit("an unknown template was good")
except pkg.SandboxException as e:
    assert "not found" in str(e), e

# Pause, connect, snapshots and forks: the parsers of the answers, and what the
# statuses become.
s = Sandbox.create("base", timeout=120)
s.beta_pause()
assert Sandbox.list(query=SandboxQuery(state=[pkg.SandboxState.PAUSED])).next_items()[0].sandbox_id == s.sandbox_id
s.beta_pause()  # 409 is no exception
assert Sandbox.connect(s.sandbox_id, timeout=60).sandbox_id == s.sandbox_id
assert Sandbox.get_info(s.sandbox_id).state.value == "running"
if not is_e2b:
    auto = Sandbox.beta_create("base", auto_pause=True)
    auto.kill()
else:
    assert s.pause() is True and s.pause() is False
    assert Sandbox.connect(s.sandbox_id, on_resume="reboot").sandbox_id == s.sandbox_id
    assert s.pause(mode="filesystem") is True
    s.connect()
    for on_timeout, auto_resume in (("pause", True), ({"action": "pause", "mode": "filesystem"}, False)):
        auto = Sandbox.create("base", lifecycle={"on_timeout": on_timeout, "auto_resume": auto_resume})
        assert auto.get_info().lifecycle == {"on_timeout": "pause", "auto_resume": auto_resume}, auto.get_info()
    plain, named = s.create_snapshot(), s.create_snapshot(name="nightly", mode="filesystem")
    assert plain.names == [] and plain.snapshot_id.endswith(":default")
    assert named.names == [named.snapshot_id] and named.snapshot_id.endswith("/nightly:default")
    pages, found = Sandbox.list_snapshots(limit=1), []
    while pages.has_next:
        found += pages.next_items()
    assert [f.snapshot_id for f in found] == [named.snapshot_id, plain.snapshot_id], found
    assert len(s.list_snapshots(name="nightly").next_items()) == 1
    assert Sandbox.create(plain.snapshot_id).sandbox_id != s.sandbox_id
    assert Sandbox.create(named.snapshot_id).sandbox_id != s.sandbox_id
    for snap in (plain, named):
        assert Sandbox.delete_snapshot(snap.snapshot_id) is True
        assert Sandbox.delete_snapshot(snap.snapshot_id) is False
    forks = s.fork(count=3, timeout=60)
    assert len({f.sandbox_id for f in forks} | {s.sandbox_id}) == 4, forks
    try:
        Sandbox.fork("i" + "a" * 20)
        raise SystemExit("what is not there was forked")
    except NotFound:
        pass
