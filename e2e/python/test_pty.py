import pytest

from conftest import eventually, read_until


def collect(handle, into):
    """Follows a terminal until it ends; the SDK reads in the caller's thread."""
    return handle.wait(on_pty=lambda data: into.append(bytes(data)))


def test_wire4_08_pty(sandbox, sdk):
    out = []
    term = sandbox.pty.create(sdk.PtySize(rows=24, cols=80), envs={"ABC": "123"})
    sandbox.pty.resize(term.pid, sdk.PtySize(rows=30, cols=100))
    # Bash sets the size that it read before each prompt, so that it may undo this one.
    sandbox.pty.send_stdin(term.pid, b'until [ "$(stty size)" = "30 100" ]; do sleep 0.05; done; echo $(tput cols)-$ABC\n')
    sandbox.pty.send_stdin(term.pid, b"exit\n")
    assert collect(term, out).exit_code == 0
    text = b"".join(out).decode()
    assert "100-123" in text


def test_pty_reconnect(sandbox, sdk):
    term = sandbox.pty.create(sdk.PtySize(rows=24, cols=80))
    sandbox.pty.send_stdin(term.pid, b"export KEPT=yes; echo do''ne\n")
    read_until(term, b"done", stream=2)
    term.disconnect()
    again = sandbox.pty.connect(term.pid)
    assert again.pid == term.pid
    out = []
    sandbox.pty.send_stdin(term.pid, b"echo kept=$KEPT; exit 3\n")
    with pytest.raises(sdk.CommandExitException) as e:
        collect(again, out)
    assert e.value.exit_code == 3
    assert b"kept=yes" in b"".join(out)


def test_pty_kill(sandbox, sdk):
    term = sandbox.pty.create(sdk.PtySize(rows=24, cols=80))
    assert sandbox.pty.kill(term.pid) is True
    eventually(lambda: sandbox.pty.kill(term.pid) is False)
