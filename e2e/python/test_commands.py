import threading
import time

import pytest

from conftest import eventually, read_until


def test_run(sandbox):
    r = sandbox.commands.run("echo hello; echo oops >&2")
    assert (r.stdout, r.stderr, r.exit_code) == ("hello\n", "oops\n", 0)


def test_exit_code_is_an_exception(sandbox, sdk):
    with pytest.raises(sdk.CommandExitException) as e:
        sandbox.commands.run("echo out; exit 42")
    assert e.value.exit_code == 42
    assert e.value.stdout == "out\n"
    assert "42" in e.value.error


def test_env_cwd_user(sandbox, sdk, exc):
    assert sandbox.commands.run("echo $A-$B", envs={"A": "1", "B": "zwei"}).stdout == "1-zwei\n"
    assert sandbox.commands.run("pwd", cwd="/usr").stdout == "/usr\n"
    assert sandbox.commands.run("whoami").stdout == "user\n"
    assert sandbox.commands.run("whoami", user="root").stdout == "root\n"
    assert sandbox.commands.run("echo $HOME $USER $LOGNAME").stdout == "/home/user user user\n"
    with pytest.raises(exc.InvalidArgumentException, match="does not exist"):
        sandbox.commands.run("true", cwd="/no/such/dir")
    with pytest.raises((exc.AuthenticationException, exc.SandboxException), match="nobody-here"):
        sandbox.commands.run("true", user="nobody-here")


def test_wire4_01_base_has_what_is_promised(sandbox):
    for tool in ("bash python python3 pip node npm git curl gcc make tput apt-get pgrep ss nc sudo").split():
        assert sandbox.commands.run("command -v " + tool).exit_code == 0, tool
    sandbox.commands.run("python3 -m venv /tmp/v && /tmp/v/bin/python -c 'import ssl'", timeout=110)
    sandbox.commands.run("sudo -n id -u | grep -qx 0")
    sandbox.commands.run("printf 'int main(){return 0;}' > /tmp/a.c && gcc /tmp/a.c -o /tmp/a && /tmp/a")
    assert sandbox.commands.run("node -e 'console.log(6*7)'").stdout == "42\n"


def test_wire4_01_sudo_drops_the_environment(sandbox):
    r = sandbox.commands.run('sudo echo "$FOO"', envs={"OTHER": "x"})
    assert r.stdout == "\n"
    r = sandbox.commands.run("sudo sh -c 'echo \"$FOO\"'", envs={"FOO": "secret"})
    assert r.stdout == "\n"


def test_wire4_02_pwd_is_where_relative_files_go(sandbox):
    cwd = sandbox.commands.run("pwd").stdout.strip()
    sandbox.files.write("relative.txt", "x")
    assert sandbox.files.read(cwd + "/relative.txt") == "x"
    assert cwd == "/home/user"


def test_wire4_03_half_a_character_is_one_replacement(sandbox):
    r = sandbox.commands.run("printf '%8191s' '' | tr ' ' a; printf '\\xe2'")
    assert r.stdout == "a" * 8191 + "\ufffd"


def test_characters_are_never_split(sandbox):
    text = "für 日本語 🎉 " * 20000
    sandbox.files.write("/tmp/utf8.txt", text)
    assert sandbox.commands.run("cat /tmp/utf8.txt").stdout == text


def test_wire4_04_timeout(sandbox, exc):
    t0 = time.monotonic()
    with pytest.raises(exc.TimeoutException):
        sandbox.commands.run("sleep 10", timeout=2)
    assert time.monotonic() - t0 < 6
    with pytest.raises(exc.TimeoutException):  # its time may be over before its begin is told
        for _ in sandbox.commands.run("sleep 10", background=True, timeout=1):
            pass


def test_trap07_float_timeout_is_accepted(sandbox):
    assert sandbox.commands.run("echo ok", timeout=7.5).stdout == "ok\n"


def test_no_timeout(sandbox):
    assert sandbox.commands.run("echo ok", timeout=0).stdout == "ok\n"


def test_wire4_05_kill_reaps_at_once(sandbox, sdk):
    h = sandbox.commands.run("sleep 1000", background=True)
    assert sandbox.commands.kill(h.pid)
    with pytest.raises(sdk.CommandExitException):
        sandbox.commands.run("kill -0 %d" % h.pid)
    assert sandbox.commands.kill(999999) is False


def test_wire4_05_connect_to_nothing(sandbox, exc):
    with pytest.raises(exc.SandboxException):
        sandbox.commands.connect(999999)


def test_kill_takes_the_children_too(sandbox):
    h = sandbox.commands.run("sleep 4321 & sleep 4321 & wait", background=True)
    eventually(lambda: sandbox.commands.run("pgrep -fxc 'sleep 4321' || true").stdout.strip() == "2")
    sandbox.commands.kill(h.pid)
    eventually(lambda: sandbox.commands.run("pgrep -fxc 'sleep 4321' || true").stdout.strip() == "0")


def test_wire4_06_connect(sandbox):
    h = sandbox.commands.run("echo before; until [ -e /tmp/connected ]; do sleep 0.1; done; echo after", background=True)
    c = sandbox.commands.connect(h.pid)
    assert c.pid == h.pid
    sandbox.files.write("/tmp/connected", "")
    seen = []
    c.wait(on_stdout=seen.append)
    assert "".join(seen).endswith("after\n")
    assert h.wait().stdout == "before\nafter\n"


def test_wire4_07_stdin(sandbox, sdk):
    h = sandbox.commands.run("cat", background=True, stdin=True)
    sandbox.commands.send_stdin(h.pid, "")
    sandbox.commands.send_stdin(h.pid, "no newline")
    assert read_until(h, "no newline") == "no newline"
    h.kill()


def test_stdin_false_is_empty(sandbox):
    assert sandbox.commands.run("cat; echo done").stdout == "done\n"


def test_list(sandbox):
    h = sandbox.commands.run("sleep 77", background=True, envs={"MARK": "1"}, cwd="/tmp")
    p = next(p for p in sandbox.commands.list() if p.pid == h.pid)
    assert p.cmd == "/bin/bash" and p.args == ["-l", "-c", "sleep 77"]
    assert p.cwd == "/tmp" and p.envs.get("MARK") == "1"
    h.kill()
    eventually(lambda: h.pid not in [p.pid for p in sandbox.commands.list()])


def test_closing_the_stream_leaves_the_process(sandbox):
    h = sandbox.commands.run("sleep 2; echo survived > /tmp/survived", background=True)
    h.disconnect()
    eventually(lambda: sandbox.files.exists("/tmp/survived"))


def test_a_grandchild_that_holds_stdout_does_not_hang(sandbox):
    assert sandbox.commands.run("sleep 1234 & echo started").stdout == "started\n"
    sandbox.commands.run("pkill -fx 'sleep 1234'")  # which still ran


def test_big_output(sandbox):
    r = sandbox.commands.run("head -c 20000000 /dev/zero | tr '\\0' x")
    assert len(r.stdout) == 20_000_000


def test_binary_output_does_not_break_the_stream(sandbox):
    r = sandbox.commands.run("head -c 100000 /dev/urandom; echo; echo end")
    assert r.stdout.endswith("end\n")


def test_output_streams_while_it_runs(sandbox):
    """The command goes on when its first output has been seen, and not before."""
    seen = []

    def on_stdout(text):
        seen.append(text)
        sandbox.files.write("/tmp/seen", "")
    sandbox.commands.run("echo a; until [ -e /tmp/seen ]; do sleep 0.1; done; echo b", on_stdout=on_stdout)
    assert seen == ["a\n", "b\n"]


def test_killed_by_a_signal(sandbox, sdk):
    with pytest.raises(sdk.CommandExitException) as e:
        sandbox.commands.run("exec sh -c 'kill -KILL $$'")
    assert e.value.exit_code == -1
    assert "signal: killed" in e.value.error


def test_many_at_once(sandbox):
    out = {}

    def one(i):
        out[i] = sandbox.commands.run("sleep 0.2; echo %d" % i).stdout

    threads = [threading.Thread(target=one, args=(i,)) for i in range(20)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert out == {i: "%d\n" % i for i in range(20)}


def test_graceful_stop_as_documented(sandbox):
    sandbox.files.write("server.py", "import signal,sys,time\n"
                        "signal.signal(15, lambda *_: (open('/tmp/bye','w').write('x'), sys.exit(0)))\n"
                        "open('/tmp/up','w').write('x')\ntime.sleep(1000)\n")
    sandbox.commands.run("python3 server.py", background=True)
    eventually(lambda: sandbox.files.exists("/tmp/up"))
    sandbox.commands.run("pkill -SIGTERM python3")
    eventually(lambda: sandbox.files.exists("/tmp/bye"))


def test_guest_limits(sandbox):
    assert int(sandbox.commands.run("nproc").stdout) >= 2
    mem = int(sandbox.commands.run("awk '/MemTotal/ {print $2}' /proc/meminfo").stdout)
    assert 3_900_000 < mem <= 4_194_304
    disk = int(sandbox.commands.run("df -B1 --output=size / | tail -1").stdout)
    assert 9 << 30 < disk <= 11 << 30


def test_orphans_are_reaped(sandbox):
    sandbox.commands.run("for i in $(seq 20); do (sleep 0.1 &) ; done")
    eventually(lambda: sandbox.commands.run("pgrep -fxc 'sleep 0.1' || true").stdout.strip() == "0")
    eventually(lambda: sandbox.commands.run("ps -eo stat= | grep -c '^Z' || true").stdout.strip() == "0")
