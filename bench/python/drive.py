"""Drives the published SDK for the benchmark: a command a line in, JSON a line out.

Times are in milliseconds and taken here, around the SDK's own calls.
"""

import json
import sys
import time

from moru import Sandbox


def timed(call):
    begin = time.perf_counter()
    result = call()
    return (time.perf_counter() - begin) * 1000, result


def create():
    """A sandbox, its first command, its end."""
    made, sandbox = timed(lambda: Sandbox.create(timeout=300))
    try:
        first, result = timed(lambda: sandbox.commands.run("echo ok"))
        assert result.stdout == "ok\n", result
    finally:
        killed, _ = timed(sandbox.kill)
    return {"create": made, "first": first, "kill": killed}


def warm(count):
    """Commands in one sandbox."""
    sandbox = Sandbox.create(timeout=300)
    try:
        sandbox.commands.run("echo ok")
        return {"run": [timed(lambda: sandbox.commands.run("echo ok"))[0] for _ in range(count)]}
    finally:
        sandbox.kill()


def output(size):
    """A command that prints size bytes."""
    sandbox = Sandbox.create(timeout=300)
    try:
        took, result = timed(lambda: sandbox.commands.run(f"head -c {size} /dev/zero | tr '\\0' x", timeout=300))
        assert len(result.stdout) == size
        return {"output": took}
    finally:
        sandbox.kill()


for line in sys.stdin:
    name, *args = line.split()
    print(json.dumps(globals()[name](*map(int, args))), flush=True)
