"""Snapshots, restore and fork (checklist: snapshots)."""
import contextlib
import time

import pytest
from miosa.errors import MiosaError, NotFoundError

from conftest import eventually


@pytest.fixture
def box(make):
    return make(env={"FOO": "bar"}, metadata={"who": "source"}, external_user_id="snapper")


def test_restore_the_same_sandbox(box, client):
    box.exec.run("echo one > /workspace/f; nohup sh -c 'echo $$ > /tmp/pid; exec sleep 10000' >/dev/null 2>&1 & sleep 0.3")
    pid = box.exec.run("cat /tmp/pid").stdout.strip()
    snap = box.snapshots.create("before")
    assert snap["status"] == "ready" and snap["comment"] == "before" and snap["sandbox_id"] == box.id and snap["size_bytes"] > 0
    box.exec.run(f"echo two > /workspace/f; kill -9 {pid}")
    back = box.snapshots.restore(snap["id"])
    assert back.id == box.id and back.state == "running"
    r = back.exec.run(f"cat /workspace/f; kill -0 {pid} && echo alive; echo $FOO")
    assert r.stdout == "one\nalive\nbar\n", r
    assert [s["id"] for s in box.snapshots.list()] == [snap["id"]]
    box.snapshots.delete(snap["id"])
    assert box.snapshots.list() == []
    with pytest.raises(NotFoundError):
        box.snapshots.restore(snap["id"])


def test_fork_branches(box, client):
    box.exec.run("echo base > /workspace/f")
    snap = box.snapshots.create()
    box.exec.run("echo later > /workspace/f")
    with contextlib.ExitStack() as stack:
        now = stack.enter_context(box.fork(name="now", timeout_sec=60))
        then = stack.enter_context(box.fork(snapshot_id=snap["id"], metadata={"who": "fork"}, external_user_id="other"))
        assert len({box.id, now.id, then.id}) == 3
        assert now.exec.run("cat /workspace/f").stdout == "later\n" and now.name == "now"
        assert then.exec.run("cat /workspace/f; echo $FOO").stdout == "base\nbar\n"
        assert then.metadata == {"who": "fork"} and now.metadata == {"who": "source"}
        assert (then.external_user_id, now.external_user_id) == ("other", "snapper")
        then.files.write("/workspace/f", "fork")
        assert box.files.read_text("/workspace/f") == "later\n"
        randoms = {s.exec.run("head -c 16 /dev/urandom | od -An -tx1").stdout for s in (box, now, then)}
        assert len(randoms) == 3


def test_fault23_a_fork_has_none_of_its_sources_secrets(box, rest):
    """A secret is bound to one sandbox; a fork has it when it is bound to that too."""
    made = box.secrets.set(name="k%d" % time.time_ns(), value="the-real-value-of-it", expose_as_env="API_KEY")
    try:
        placeholder = box.exec.run("echo $API_KEY").stdout.strip()
        assert placeholder.startswith("miosa-tok-")
        box.exec.run("echo $API_KEY > /workspace/copied")
        with box.fork(timeout_sec=60) as fork:
            assert fork.exec.run("echo [$API_KEY]").stdout == "[]\n"
            bindings = rest.get("/egress/bindings", params={"resource_id": fork.id}).json()["bindings"]
            assert bindings == []
            # What was copied with memory and files is a word that stands for nothing there.
            assert fork.exec.run("cat /workspace/copied").stdout.strip() == placeholder
            sid = (made.get("data") or made)["id"]
            bound = rest.post("/egress/bindings", json={"secret_id": sid, "resource_id": fork.id, "expose_as_env": "API_KEY"})
            assert bound.status_code == 201, bound.text
            own = fork.exec.run("echo $API_KEY").stdout.strip()
            assert own.startswith("miosa-tok-") and own != placeholder
    finally:
        rest.delete("/egress/secrets/" + (made.get("data") or made)["id"])


def test_snapshot_outlives_its_sandbox(box, client, rest):
    box.exec.run("echo kept > /workspace/f")
    snap = box.snapshots.create("lasting")
    box.destroy()
    assert rest.get("/snapshots/" + snap["id"]).json()["comment"] == "lasting"
    assert snap["id"] in [s["id"] for s in rest.get("/snapshots", params={"resource_id": box.id}).json()["data"]]
    r = rest.post(f"/sandboxes/{box.id}/fork", json={"snapshot_id": snap["id"]})
    assert r.status_code == 201, r.text
    new = client.sandboxes.connect(r.json()["id"])
    assert new.exec.run("cat /workspace/f").stdout == "kept\n"
    new.destroy()
    assert rest.delete("/snapshots/" + snap["id"]).status_code == 204
    assert rest.get("/snapshots/" + snap["id"]).status_code == 404


def test_retention(box, rest):
    r = rest.post(f"/sandboxes/{box.id}/snapshots", json={"retention_seconds": 2, "comment": "short"})
    snap = r.json()
    assert r.status_code == 201 and snap["retention_seconds"] == 2 and snap["expires_at"] and snap["keep"] is False
    eventually(lambda: rest.get("/snapshots/" + snap["id"]).status_code == 404, seconds=90)
    assert rest.post(f"/sandboxes/{box.id}/snapshots", json={"retention_seconds": 0}).status_code == 422


def test_delete_several(box, rest):
    ids = [rest.post(f"/sandboxes/{box.id}/snapshots", json={}).json()["id"] for _ in range(2)]
    r = rest.post("/snapshots/delete", json={"snapshot_ids": ids + ["s" + "0" * 19]}).json()
    assert r["deleted"] == ids and len(r["failed"]) == 1


def test_old_snapshot_call(box):
    assert box.snapshot().startswith("s")


def test_snapshot_of_a_paused_one(box):
    box.exec.run("echo kept > /workspace/f")
    box.pause()
    with pytest.raises(MiosaError):
        box.snapshots.create()  # the client's own gate
    box.resume()
    assert box.exec.run("cat /workspace/f").stdout == "kept\n"
