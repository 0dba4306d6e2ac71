"""One part of a sandbox's life with a published SDK. NACRE_SDK names the package,
NACRE_SANDBOX the sandbox of the first part, NACRE_RUNTIME what that one comes to run on,
NACRE_ASKED what it asks for, if anything, NACRE_URL the server."""
import hashlib
import importlib
import os
import sys
import time
import urllib.request

SDK = os.environ["NACRE_SDK"]
sdk = importlib.import_module(SDK)
PATIENT = {"request_timeout": 300}  # the host is emulated
SERVER = r"""
use IO::Socket::INET; my $l = IO::Socket::INET->new(LocalPort => 8000, Listen => 5, ReuseAddr => 1) or die;
while (my $c = $l->accept) { while (<$c>) { last if /^\r?\n$/ } print $c "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nperl\n"; close $c }
"""


def eventually(check, seconds=120):
    end = time.monotonic() + seconds
    while True:
        try:
            return check()
        except Exception:  # noqa: BLE001 - whatever it is, it is raised at the end
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def connect():
    return sdk.Sandbox.connect(os.environ["NACRE_SANDBOX"], timeout=3000, **PATIENT)


def preview(sandbox):
    """A port of the sandbox, through the edge, as a browser would be routed."""
    req = urllib.request.Request(os.environ["NACRE_URL"] + "/", headers={
        "E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "8000"})
    with urllib.request.urlopen(req, timeout=60) as r:
        return r.read()


def begin():
    metadata = {"suite": "microvm"}
    if "NACRE_ASKED" in os.environ:
        metadata["nacre:runtime"] = os.environ["NACRE_ASKED"]
    sandbox = sdk.Sandbox.create(timeout=3000, envs={"WHO": "the create"}, metadata=metadata, **PATIENT)
    r = sandbox.commands.run("cat /proc/version; id -un; echo $WHO", timeout=240, **PATIENT)
    own = "Linux version 6.12" in r.stdout and "-nacre" in r.stdout  # the microVM's own kernel
    assert own == (os.environ["NACRE_RUNTIME"] == "firecracker"), r.stdout
    assert r.stdout.endswith("user\nthe create\n"), r.stdout
    sandbox.files.write("server.pl", SERVER, **PATIENT)
    sandbox.commands.run("exec perl server.pl", background=True, timeout=0, **PATIENT)
    print(sandbox.sandbox_id)


def use():
    sandbox = connect()
    data = os.urandom(1 << 20)
    sandbox.files.write("/tmp/data", data, **PATIENT)
    assert bytes(sandbox.files.read("/tmp/data", format="bytes", **PATIENT)) == data
    r = sandbox.commands.run("sha256sum < /tmp/data", timeout=240, **PATIENT)
    assert r.stdout.split()[0] == hashlib.sha256(data).hexdigest(), r.stdout
    try:
        sandbox.commands.run("echo oops >&2; exit 42", timeout=240, **PATIENT)
        raise AssertionError("exit 42 is no error")
    except sdk.CommandExitException as e:
        assert (e.exit_code, e.stderr) == (42, "oops\n")
    lines = []
    sandbox.commands.run("for i in 1 2 3; do echo $i; done", on_stdout=lines.append, timeout=240, **PATIENT)
    assert "".join(lines) == "1\n2\n3\n", lines
    names = [e.name for e in sandbox.files.list("/home/user", **PATIENT)]
    assert names == ["server.pl"], names
    assert eventually(lambda: preview(sandbox)) == b"perl\n"
    assert any("perl" in p.cmd or "perl" in " ".join(p.args) for p in sandbox.commands.list(**PATIENT))


def pause():
    sandbox = connect()
    (sandbox.beta_pause if SDK == "moru" else sandbox.pause)(**PATIENT)
    sandbox = connect()  # resumes it
    assert eventually(lambda: preview(sandbox)) == b"perl\n"  # the process goes on
    r = sandbox.commands.run("sha256sum < /tmp/data", timeout=240, **PATIENT)
    assert len(r.stdout.split()[0]) == 64


def end():
    sandbox = connect()
    assert sandbox.kill(**PATIENT)
    assert not sandbox.is_running(request_timeout=300)


globals()[sys.argv[1]]()
