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
