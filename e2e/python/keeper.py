"""Runs inside a sandbox, holds one of everything that a pause must not lose, and
answers on port 8000: /check says what of it is still there, as JSON."""
import hashlib
import http.server
import json
import os
import random
import socket
import sys
import threading
import time

STARTED = time.time()
SIZE = int(sys.argv[1]) if len(sys.argv) > 1 else 32
memory = random.randbytes(SIZE << 20)
memory_sum = hashlib.sha256(memory).hexdigest()

text = open("/tmp/keeper.txt", "w+")
text.write("0123456789")
text.flush()
text.seek(5)
deleted = open("/tmp/keeper.deleted", "w+b")
deleted.write(b"still here")
deleted.flush()
os.unlink("/tmp/keeper.deleted")

pipe_r, pipe_w = os.pipe()
os.write(pipe_w, b"in the pipe")
pair_a, pair_b = socket.socketpair(socket.AF_UNIX)
pair_a.send(b"in the socket")
unix = socket.socket(socket.AF_UNIX)
unix.bind("/tmp/keeper.sock")
unix.listen()

loop_listen = socket.create_server(("127.0.0.1", 8001))
loop_client = socket.create_connection(("127.0.0.1", 8001))
loop_server, _ = loop_listen.accept()

outside = None
if os.environ.get("OUTSIDE"):
    host, port = os.environ["OUTSIDE"].split(":")
    outside = socket.create_connection((host, int(port)), timeout=5)
    outside.settimeout(None)
    outside.send(b"x")
    assert outside.recv(1) == b"x"
outside_end = []


def read_outside():
    """Waits in recv, as a client of a database does."""
    try:
        got = outside.recv(1)
        outside_end.append("end" if not got else "data")
    except OSError as e:
        outside_end.append(type(e).__name__)


if outside:
    threading.Thread(target=read_outside, daemon=True).start()

ticks = 0


def tick():
    global ticks
    while True:
        time.sleep(0.05)
        ticks += 1


threading.Thread(target=tick, daemon=True).start()


def attempt(f):
    try:
        return f()
    except Exception as e:  # noqa: BLE001 - it is the answer
        return type(e).__name__ + ": " + str(e)


def loopback():
    loop_client.settimeout(5)
    loop_server.settimeout(5)
    loop_client.send(b"ping")
    return loop_server.recv(4).decode()


def unix_again():
    c = socket.socket(socket.AF_UNIX)
    c.connect("/tmp/keeper.sock")
    s, _ = unix.accept()
    s.send(b"anew")
    return c.recv(4).decode()


def check():
    out = {
        "pid": os.getpid(),
        "memory": hashlib.sha256(memory).hexdigest() == memory_sum,
        "file": text.read(),
        "deleted": attempt(lambda: (deleted.seek(0), deleted.read().decode())[1]),
        "pipe": attempt(lambda: os.read(pipe_r, 64).decode()),
        "socketpair": attempt(lambda: pair_b.recv(64).decode()),
        "unix": attempt(unix_again),
        "loopback": attempt(loopback),
        "ticks": ticks,
        "env": os.environ.get("WHO"),
        "outside": outside_end[0] if outside_end else ("open" if outside else None),
    }
    text.seek(5)
    os.write(pipe_w, b"in the pipe")
    pair_a.send(b"in the socket")
    return out


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = json.dumps(check() if self.path == "/check" else {"hello": self.path}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


server = http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler)
print("ready", flush=True)
server.serve_forever()
