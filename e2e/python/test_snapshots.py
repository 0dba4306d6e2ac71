"""Snapshots and forks, which are E2B's alone."""
import threading
import time

import pytest

from conftest import SDK, eventually, read_until
from test_pause import ALL_THERE, curl, keeper

pytestmark = pytest.mark.skipif(SDK != "e2b", reason="Moru's SDK has no snapshots and no forks")


def everything(sdk, **kwargs):
    p, out = sdk.Sandbox.list_snapshots(**kwargs), []
    while p.has_next:
        out += p.next_items()
    return out


def test_snapshot_of_a_running_one_which_goes_on(make, sdk):
    sbx = make()
    pid = keeper(sbx)
    sbx.files.write("state.txt", "at the snapshot")
    snap = sbx.create_snapshot()
    sbx.files.write("state.txt", "after it")
    made = make(snap.snapshot_id)
    try:
        assert made.sandbox_id != sbx.sandbox_id
        assert made.files.read("state.txt") == "at the snapshot" and sbx.files.read("state.txt") == "after it"
        for one in (sbx, made):
            got = curl(one, "/check")
            assert {k: got[k] for k in ALL_THERE} == ALL_THERE, got
            assert any(p.pid == pid for p in one.commands.list())
    finally:
        assert sdk.Sandbox.delete_snapshot(snap.snapshot_id) is True


def test_snapshots_are_named_listed_and_deleted(make, sdk, exc):
    sbx = make()
    name = "n%d" % time.time_ns()
    plain, old, new = sbx.create_snapshot(), sbx.create_snapshot(name=name), sbx.create_snapshot(name=name)
    assert plain.names == [] and plain.snapshot_id.endswith(":default")
    assert old.snapshot_id == new.snapshot_id and new.names == [new.snapshot_id] and name in new.snapshot_id
    of_it = everything(sdk, sandbox_id=sbx.sandbox_id, limit=1)
    assert len(of_it) == 3 and of_it[0].snapshot_id == new.snapshot_id and of_it[2].snapshot_id == plain.snapshot_id
    assert len({s.snapshot_id for s in of_it}) == 3
    assert len(everything(sdk, name=name)) == 2
    assert sdk.Sandbox.delete_snapshot(new.snapshot_id) is True
    assert everything(sdk, name=name) == []
    sbx.kill()
    made = make(plain.snapshot_id)  # it outlives its sandbox
    assert made.commands.run("echo alive").stdout == "alive\n"
    assert sdk.Sandbox.delete_snapshot(plain.snapshot_id) is True
    assert sdk.Sandbox.delete_snapshot(plain.snapshot_id) is False
    with pytest.raises(exc.SandboxException, match="not found"):
        sdk.Sandbox.create(plain.snapshot_id)
    assert made.commands.run("echo still").stdout == "still\n"  # what was made of it goes on


def test_files_only_snapshot_boots(make, sdk):
    sbx = make()
    keeper(sbx)
    sbx.files.write("state.txt", "kept")
    snap = sbx.create_snapshot(mode="filesystem")
    made = make(snap.snapshot_id)
    assert made.files.read("state.txt") == "kept"
    assert made.commands.list() == []
    assert any("keeper" in " ".join(p.args) for p in sbx.commands.list())
    sdk.Sandbox.delete_snapshot(snap.snapshot_id)


def test_fault23_fork_is_a_sandbox_of_its_own(make, sdk):
    sbx = make(timeout=600, metadata={"role": "source"}, envs={"WHO": "the source"})
    pid = keeper(sbx)
    end = sbx.get_info().end_at
    forks = sbx.fork(count=2, timeout=120)
    try:
        ids = {f.sandbox_id for f in forks} | {sbx.sandbox_id}
        assert len(ids) == 3
        assert sbx.get_info().end_at == end
        who = "cat /etc/machine-id; hostname; hostname -I"
        seen = [one.commands.run(who).stdout.split("\n")[:3] for one in [sbx, *forks]]
        for column in zip(*seen):
            assert len(set(column)) == 3, seen
        for f in forks:
            got = curl(f, "/check")
            assert {k: got[k] for k in ALL_THERE} == ALL_THERE
            assert got["pid"] == pid
            assert f.get_info().metadata == {"role": "source"}
            assert f.commands.run("echo $WHO").stdout == "the source\n"
            f.files.write("mine.txt", f.sandbox_id)
        assert not sbx.files.exists("mine.txt")
        assert [f.files.read("mine.txt") for f in forks] == [f.sandbox_id for f in forks]
        assert len({f._envd_access_token for f in forks} | {sbx._envd_access_token}) == 3
    finally:
        for f in forks:
            f.kill()


def test_fault23_a_sources_token_opens_no_fork(make, sdk):
    import urllib.error
    import urllib.request
    from conftest import MODE
    if MODE != "http":
        pytest.skip("headers name the sandbox over plain HTTP; TLS is the same code")
    import os
    sbx = make()
    fork = sbx.fork(timeout=120)[0]
    try:
        for token, status in ((sbx._envd_access_token, 401), (fork._envd_access_token, 200)):
            req = urllib.request.Request(os.environ["E2B_SANDBOX_URL"] + "/process.Process/List", data=b"{}", headers={
                "E2b-Sandbox-Id": fork.sandbox_id, "E2b-Sandbox-Port": "49983", "X-Access-Token": token,
                "Content-Type": "application/json"})
            try:
                assert urllib.request.urlopen(req).status == status
            except urllib.error.HTTPError as e:
                assert e.code == status
    finally:
        fork.kill()


RANDOM = ("head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo; cat /proc/sys/kernel/random/uuid; "
          "python3 -c 'import random,uuid,secrets;print(random.random());print(uuid.uuid4());print(secrets.token_hex(8))'")


def test_fault23_twenty_forks_share_no_random_stream(make, sdk):
    sbx = make(timeout=600)
    sbx.commands.run(RANDOM)  # the streams are in use when they are copied
    forks = sbx.fork(count=20, timeout=300)
    try:
        assert all(isinstance(f, sdk.Sandbox) for f in forks), forks
        out = {}

        def ask(f):
            out[f.sandbox_id] = f.commands.run(RANDOM).stdout.split()
        threads = [threading.Thread(target=ask, args=(f,)) for f in [*forks, sbx]]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert len(out) == 21
        values = [v for vs in out.values() for v in vs]
        assert len(values) == 21 * 5 and len(set(values)) == len(values)
    finally:
        for f in forks:
            if isinstance(f, sdk.Sandbox):
                f.kill()


def test_a_running_programs_own_random_stream_is_copied(make, sdk):
    """What a program has in its memory is copied with it; docs/snapshots.md says so."""
    sbx = make()
    handle = sbx.commands.run("exec python3 -uc 'import random\nprint(\"seeded\")\nwhile True:\n  input()\n"
                              "  open(\"/tmp/r\",\"w\").write(str(random.random()))'", background=True, stdin=True, timeout=0)
    read_until(handle, "seeded")
    handle.disconnect()
    forks = sbx.fork(count=2, timeout=120)
    try:
        for f in forks:
            f.commands.send_stdin(handle.pid, "\n")
        own = [eventually(lambda: f.files.exists("/tmp/r") and f.files.read("/tmp/r")) for f in forks]
        assert own[0] == own[1]
    finally:
        for f in forks:
            f.kill()


def test_a_fork_lives_fifteen_seconds_unless_more_is_said(make, sdk):
    sbx = make(timeout=600)
    for said, seconds in (({}, 15), ({"timeout": 90}, 90)):
        fork = sbx.fork(**said)[0]
        info = fork.get_info()
        assert abs((info.end_at - info.started_at).total_seconds() - seconds) < 1
        fork.kill()


def test_fork_of_nothing(sdk, exc):
    with pytest.raises(exc.NotFoundException):
        sdk.Sandbox.fork("i" + "a" * 20)


def test_clock_is_right_in_a_fork(make):
    sbx = make()
    snap = sbx.create_snapshot()
    time.sleep(3)
    made = make(snap.snapshot_id)
    made.commands.run("true")
    best = 10
    for _ in range(5):
        t0 = time.time()
        guest = float(made.commands.run("date +%s.%N").stdout)
        t1 = time.time()
        best = min(best, 0 if t0 <= guest <= t1 else min(abs(guest - t0), abs(guest - t1)))
    assert best < 0.05
    eventually(lambda: type(made).delete_snapshot(snap.snapshot_id))
