"""The published Python SDKs against a real server.

NACRE_SDK says which package ("moru" or "e2b"), NACRE_MODE how it is reached
("http" or "tls"), NACRE_TEST_SLOWNESS how many times as long the tests may wait as on
a real host; the rest of the environment is what `nacre env` prints.
"""
import importlib
import os
import time

import pytest

SDK = os.environ["NACRE_SDK"]
MODE = os.environ["NACRE_MODE"]
SLOW = int(os.environ.get("NACRE_TEST_SLOWNESS", "1"))
PATIENT = {"request_timeout": 60 * SLOW} if SLOW > 1 else {}  # 60 s are the packages' own


@pytest.fixture(scope="session")
def sdk():
    return importlib.import_module(SDK)


@pytest.fixture(scope="session")
def exc():
    return importlib.import_module(SDK + ".exceptions")


@pytest.fixture(scope="module")
def sandbox(sdk):
    sbx = sdk.Sandbox.create(timeout=900 * SLOW, metadata={"suite": "shared"}, **PATIENT)
    yield sbx
    sbx.kill()


@pytest.fixture
def make(sdk):
    """Creates sandboxes that end with the test."""
    made = []

    def create(*args, **kwargs):
        kwargs = {"timeout": 120 * SLOW, **PATIENT, **kwargs}
        sbx = sdk.Sandbox.create(*args, **kwargs)
        made.append(sbx)
        return sbx

    yield create
    for sbx in made:
        sbx.kill()


def eventually(check, seconds=60, every=0.25):
    """Returns check()'s first true answer; fails when none comes in time: a minute is for
    what must happen at all, on a host with whatever other work; a promise gives its own."""
    end = time.monotonic() + seconds * SLOW
    while True:
        value = check()
        if value:
            return value
        assert time.monotonic() < end, "condition not met in %s s" % (seconds * SLOW)
        time.sleep(every)


def read_until(handle, mark, stream=0):
    """Follows a command until its output holds mark, and leaves it running; stream is 0
    for stdout, 2 for a terminal. The SDK reads in the caller's thread."""
    seen = "" if stream == 0 else b""
    for event in handle:
        if event[stream] is not None:
            seen += event[stream] if stream == 0 else bytes(event[stream])
            if mark in seen:
                return seen
    raise AssertionError("the command ended and said %r" % seen)


only_moru = pytest.mark.skipif(SDK != "moru", reason="a behaviour of the moru package only")
only_tls = pytest.mark.skipif(MODE != "tls", reason="needs sandbox host names, hence TLS")
