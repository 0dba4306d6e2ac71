"""Files (checklist: exec and files; wire: files)."""
import io
import tarfile
import threading

import pytest
from miosa.errors import MiosaError, NotFoundError, ValidationError


def test_write_read(sbx):
    blob = bytes(range(256)) * 1000
    sbx.files.write("/workspace/deep/er/blob.bin", blob)
    assert sbx.files.read("/workspace/deep/er/blob.bin") == blob
    sbx.files.write("/workspace/t.txt", "grüße\n")
    assert sbx.files.read_text("/workspace/t.txt") == "grüße\n"
    sbx.files.write("/workspace/empty", b"")
    assert sbx.files.read("/workspace/empty") == b""
    assert sbx.exec.run("stat -c %U:%a /workspace/t.txt; echo more >> /workspace/t.txt").exit_code == 0


def test_json_is_no_envelope(sbx):
    sbx.files.write("/workspace/a.json", '{"data": {"x": 1}}')
    assert sbx.files.read("/workspace/a.json") == b'{"data": {"x": 1}}'


@pytest.mark.parametrize("name", ["with space", "q?x=1", "hash#", "pct%41", "ümläut", "a+b", "-dash"])
def test_odd_names(sbx, rest, name):
    path = "/workspace/odd/" + name
    sbx.files.write(path, name)
    assert sbx.files.read_text(path) == name
    from urllib.parse import quote

    encoded = "/".join(quote(p, safe="") for p in path.lstrip("/").split("/"))
    assert rest.get(f"/sandboxes/{sbx.id}/files/{encoded}").text == name


def test_list_stat_tree(sbx):
    sbx.exec.run("mkdir -p /workspace/l/d && echo 12345 > /workspace/l/f && ln -s f /workspace/l/s && touch /workspace/l/d/g")
    got = sbx.files.list("/workspace/l")
    assert got["path"] == "/workspace/l" and [e["name"] for e in got["entries"]] == ["d", "f", "s"]
    d, f, s = got["entries"]
    assert d["is_dir"] and d["type"] == "dir" and not f["is_dir"] and f["type"] == "file" and f["size"] == 6
    assert f["path"] == "/workspace/l/f" and f["modified_at"].endswith("Z")
    assert "g" in [e["name"] for e in sbx.files.list("/workspace/l", depth=2)["entries"]]
    st = sbx.files.stat("/workspace/l/f")
    assert st["size"] == 6 and st["mode"] == "0644" and st["is_symlink"] is False
    assert sbx.files.stat("/workspace/l/s")["is_symlink"] is True
    tree = sbx.files.tree("/workspace/l")
    assert tree["type"] == "dir" and [c["name"] for c in tree["children"]] == ["d", "f", "s"]
    assert tree["children"][0]["children"][0]["path"] == "/workspace/l/d/g"


def test_write_many(sbx):
    r = sbx.files.write_many([{"path": "/workspace/m/1", "content": "a"}, {"path": "relative", "content": "b"}, {"path": "/workspace/m/2", "content": b"\x00"}])
    assert [w["path"] for w in r["written"]] == ["/workspace/m/1", "/workspace/m/2"] and r["written"][0]["size_bytes"] == 1
    assert [f["path"] for f in r["failed"]] == ["relative"] and "absolute" in r["failed"][0]["error"]


def test_missing_and_relative(sbx):
    for call in (sbx.files.read, sbx.files.stat, lambda p: sbx.files.list(p)):
        with pytest.raises(NotFoundError):
            call("/workspace/no/such")
    for call in (lambda: sbx.files.write("relative", "x"), lambda: sbx.files.stat("a/b")):
        with pytest.raises(ValidationError) as e:
            call()
        assert e.value.status_code == 422 and e.value.code == "INVALID_PATH"


def test_disk_full(sbx):
    with pytest.raises(MiosaError) as e:
        sbx.files.write("/dev/full", b"x" * 100)
    assert e.value.status_code < 500 or e.value.status_code == 507


def test_other_clients_operations(rest, sbx):
    at = f"/sandboxes/{sbx.id}/files"

    def post(op, body, status=200):
        r = rest.post(at + "/" + op, json=body)
        assert r.status_code == status, r.text
        return r.json()

    assert post("mkdir", {"path": "/workspace/o/a/b", "recursive": True, "mode": "0700"}, 201)["mode"] == "0700"
    post("mkdir", {"path": "/workspace/o/a/b", "recursive": True}, 201)
    post("mkdir", {"path": "/workspace/o/a/b", "recursive": False}, 409)
    post("mkdir", {"path": "/workspace/o/x/y", "recursive": False}, 404)
    rest.post(at, json={"path": "/workspace/o/f", "content": "aGk="}).raise_for_status()
    assert rest.get(at + "/read", params={"path": "/workspace/o/f"}).json()["content"] == "hi"
    assert post("chmod", {"path": "/workspace/o/f", "mode": "0755"})["mode"] == "0755"
    assert post("chmod", {"path": "/workspace/o/f", "mode": 600})["mode"] == "0600"
    post("chmod", {"path": "/workspace/o/f", "mode": "rm -rf"}, 422)
    post("rename", {"from": "/workspace/o/f", "to": "/workspace/o/g"})
    post("copy", {"from": "/workspace/o", "to": "/workspace/o2/copy", "recursive": True})
    assert rest.get(f"/sandboxes/{sbx.id}/files/workspace/o2/copy/g").content == b"hi"
    post("copy", {"from": "/workspace/o", "to": "/workspace/o3", "recursive": False}, 422)
    post("copy", {"from": "/workspace/none", "to": "/workspace/o3"}, 404)
    r = rest.request("DELETE", at, json={"path": "/workspace/o2"})
    assert r.status_code == 204 and r.content == b""
    assert rest.request("DELETE", at, json={"path": "/workspace/o2"}).status_code == 404
    r = rest.post(at + "/upload", data={"path": "/workspace/up/f"}, files={"file": ("f", b"multi\x00part")})
    assert r.status_code == 200, r.text
    r = rest.get(at + "/download", params={"path": "/workspace/up/f"})
    assert r.content == b"multi\x00part" and r.headers["content-type"] == "application/octet-stream"
    assert rest.get(at + "/readdir", params={"path": "/workspace/up"}).json()["entries"][0]["name"] == "f"


def test_exports(sbx):
    sbx.exec.run("mkdir -p /workspace/e && echo one > /workspace/e/1 && echo two > /workspace/e/2")
    assert sbx.download_export("/workspace/e/1") == b"one\n"
    with tarfile.open(fileobj=io.BytesIO(sbx.download_export(["/workspace/e/1", "/workspace/e/2"]))) as t:
        assert sorted(n.lstrip("./") for n in t.getnames()) == ["workspace/e/1", "workspace/e/2"]
    d = sbx.create_export(["/workspace/e"], filename="all.tar.gz")
    assert d["filename"] == "all.tar.gz" and "/exports/download?" in d["download_url"]
    with pytest.raises(NotFoundError):
        sbx.download_export(["/workspace/nope", "/workspace/e"])


def test_watch(sbx):
    sbx.exec.run("mkdir -p /workspace/w/sub")
    seen, ready = [], threading.Event()

    def follow():
        for e in sbx.files.watch_dir("/workspace/w"):
            seen.append((e.event, e.path, e.is_dir, e.old_path))
            ready.set()
            if e.path.endswith("/stop"):
                return

    t = threading.Thread(target=follow, daemon=True)
    t.start()
    n = 0
    while not ready.wait(0.3):  # the watch has begun when it sees something
        n += 1
        sbx.exec.run(f"touch /workspace/w/probe{n}")
        assert n < 50
    sbx.exec.run("cd /workspace/w; echo a > sub/f; mv sub/f sub/g; rm sub/g; mkdir d; touch stop")
    t.join(20)
    events = [(e, p, o) for e, p, _, o in seen]
    assert ("created", "/workspace/w/sub/f", None) in events
    assert ("modified", "/workspace/w/sub/f", None) in events
    assert ("renamed", "/workspace/w/sub/g", "/workspace/w/sub/f") in events
    assert ("deleted", "/workspace/w/sub/g", None) in events
    assert ("created", "/workspace/w/d", True, None) in seen
