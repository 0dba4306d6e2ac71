import io
import os
import time
import urllib.error
import urllib.request

import pytest

from conftest import SLOW


def test_write_and_read(sandbox):
    info = sandbox.files.write("notes/hello.txt", "hello wörld")
    assert info.path == "/home/user/notes/hello.txt" and info.name == "hello.txt"
    assert sandbox.files.read("notes/hello.txt") == "hello wörld"
    assert sandbox.files.read("/home/user/notes/hello.txt", format="bytes") == "hello wörld".encode()
    assert b"".join(sandbox.files.read("notes/hello.txt", format="stream")) == "hello wörld".encode()


def test_empty_file(sandbox):
    sandbox.files.write("empty", "")
    assert sandbox.files.read("empty") == ""


def test_overwrite_truncates(sandbox):
    sandbox.files.write("o.txt", "long content")
    sandbox.files.write("o.txt", "s")
    assert sandbox.files.read("o.txt") == "s"


def test_binary(sandbox):
    data = os.urandom(3_000_000)
    sandbox.files.write("/tmp/blob", io.BytesIO(data))
    assert bytes(sandbox.files.read("/tmp/blob", format="bytes")) == data


def test_missing_and_wrong_kind(sandbox, exc):
    with pytest.raises(exc.NotFoundException):
        sandbox.files.read("/no/such/file")
    with pytest.raises(exc.InvalidArgumentException):
        sandbox.files.read("/tmp")
    with pytest.raises(exc.NotFoundException):
        sandbox.files.list("/no/such/dir")
    with pytest.raises(exc.InvalidArgumentException):
        sandbox.files.list("/etc/passwd")
    with pytest.raises(exc.NotFoundException):
        sandbox.files.get_info("/no/such/file")


def test_wire4_09_missing_is_no_error_where_it_need_not_be(sandbox, exc):
    assert sandbox.files.exists("/no/such/file") is False
    sandbox.files.remove("/no/such/file")
    with pytest.raises(exc.NotFoundException):
        sandbox.files.rename("/no/such/file", "/tmp/x")
    assert sandbox.files.make_dir("made") is True
    assert sandbox.files.make_dir("made") is False


def test_wire4_10_ten_files_in_one_request(sandbox):
    files = [{"path": "/0/deep/%d.txt" % i if i % 2 else "many/%d.txt" % i, "data": "file %d" % i} for i in range(10)]
    infos = sandbox.files.write_files(files)
    assert len(infos) == 10
    for i, f in enumerate(files):
        assert sandbox.files.read(f["path"]) == "file %d" % i
    assert sandbox.commands.run("stat -c %U /0/deep/1.txt").stdout == "user\n"
    assert sandbox.files.write_files([]) == []


def test_trap05_write_answers_exactly_name_type_path(sandbox):
    info = sandbox.files.write("exact.txt", "x")
    assert (info.name, info.path) == ("exact.txt", "/home/user/exact.txt")
    assert str(getattr(info.type, "value", info.type)) == "file"


def test_wire4_11_root_writes_below_root(sandbox):
    assert sandbox.files.write("by-root.txt", "x", user="root").path == "/root/by-root.txt"
    assert sandbox.files.read("by-root.txt", user="root") == "x"


def test_info_list_depth(sandbox):
    sandbox.files.write("tree/a/b/c.txt", "12345")
    sandbox.files.write("tree/z.txt", "1")
    one = sandbox.files.list("tree")
    assert [e.name for e in one] == ["a", "z.txt"]
    three = sandbox.files.list("tree", depth=3)
    assert [e.path for e in three] == ["/home/user/tree/" + p for p in ("a", "a/b", "a/b/c.txt", "z.txt")]
    info = sandbox.files.get_info("tree/a/b/c.txt")
    assert (info.size, info.mode, info.permissions, info.owner, info.group) == (5, 0o644, "-rw-r--r--", "user", "user")
    assert abs(info.modified_time.timestamp() - time.time()) < 120
    d = sandbox.files.get_info("tree/a")
    assert d.permissions == "drwxr-xr-x"


def test_symlink_info(sandbox):
    sandbox.commands.run("mkdir -p ln && cd ln && echo hi > t.txt && ln -sf t.txt l.txt")
    info = sandbox.files.get_info("ln/l.txt")
    assert info.name == "l.txt" and info.symlink_target == "/home/user/ln/t.txt"


def test_rename_remove(sandbox):
    sandbox.files.write("old.txt", "x")
    assert sandbox.files.rename("old.txt", "sub/new.txt").path == "/home/user/sub/new.txt"
    assert not sandbox.files.exists("old.txt")
    sandbox.files.remove("sub")
    assert not sandbox.files.exists("sub")


def kinds(events):
    return [getattr(e.type, "value", e.type) for e in events]


def test_watch_exact_events(sandbox):
    sandbox.files.make_dir("watched")
    h = sandbox.files.watch_dir("watched")
    sandbox.files.write("watched/new.txt", "content")
    events = h.get_new_events()
    assert kinds(events) == ["create", "chmod", "write"]
    assert {e.name for e in events} == {"new.txt"}
    assert h.get_new_events() == []
    sandbox.files.rename("watched/new.txt", "watched/other.txt")
    got = kinds(h.get_new_events())
    assert "rename" in got and "create" in got
    sandbox.files.remove("watched/other.txt")
    assert kinds(h.get_new_events()) == ["remove"]
    h.stop()


def test_watch_recursive_sees_new_directories(sandbox):
    sandbox.files.make_dir("rec")
    h = sandbox.files.watch_dir("rec", recursive=True)
    sandbox.files.make_dir("rec/sub")
    sandbox.files.write("rec/sub/f.txt", "x")
    names = [e.name for e in h.get_new_events()]
    assert "sub" in names and "sub/f.txt" in names
    h.stop()


def test_watch_missing_and_file(sandbox, exc):
    with pytest.raises(exc.NotFoundException):
        sandbox.files.watch_dir("/no/such/dir")
    sandbox.files.write("plain", "x")
    with pytest.raises(exc.SandboxException):
        sandbox.files.watch_dir("plain")


def fetch(url, data=None, headers=None):
    import ssl
    ctx = ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE"))
    req = urllib.request.Request(url, data=data, headers=headers or {})
    try:
        with urllib.request.urlopen(req, context=ctx if url.startswith("https") else None) as r:
            return r.status, r.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()


def multipart(name, content):
    b = "xxBOUNDxx"
    body = ('--%s\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n\r\n%s\r\n--%s--\r\n'
            % (b, name, content, b)).encode()
    return body, {"Content-Type": "multipart/form-data; boundary=" + b}


def test_signed_urls(sandbox):
    sandbox.files.write("signed dir/ä+b.txt", "signed content")
    url = sandbox.download_url("signed dir/ä+b.txt", user="user", use_signature_expiration=30 * SLOW)
    assert fetch(url) == (200, "signed content")
    up = sandbox.upload_url("uploaded.txt", user="user", use_signature_expiration=30 * SLOW)
    body, h = multipart("whatever.txt", "uploaded content")
    assert fetch(up, body, h)[0] == 200
    assert sandbox.files.read("uploaded.txt") == "uploaded content"


def test_signed_url_for_root(sandbox):
    up = sandbox.upload_url("hello.txt", user="root", use_signature_expiration=30 * SLOW)
    body, h = multipart("hello.txt", "x")
    status, text = fetch(up, body, h)
    assert status == 200 and '"/root/hello.txt"' in text


def test_signed_url_expired_and_tampered(sandbox):
    sandbox.files.write("s.txt", "x")
    url = sandbox.download_url("s.txt", user="user", use_signature_expiration=-120)
    status, text = fetch(url)
    assert status == 401 and text.strip() == '{"code":401,"message":"signature is already expired"}'
    good = sandbox.download_url("s.txt", user="user", use_signature_expiration=60 * SLOW)
    status, _ = fetch(good.replace("s.txt", "passwd"))
    assert status == 401
