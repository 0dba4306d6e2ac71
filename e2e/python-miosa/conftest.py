"""The published MIOSA client against a real server.

The environment is what `nacre env` prints. NACRE_TEST_SLOWNESS is how many times as
long the tests may wait as on a real host.
"""
import contextlib
import os
import time

import httpx
import pytest
from miosa import Miosa

BASE = os.environ["MIOSA_BASE_URL"]
KEY = os.environ["MIOSA_API_KEY"]
SLOW = int(os.environ.get("NACRE_TEST_SLOWNESS", "1"))


@pytest.fixture(scope="session")
def client():
    return Miosa(timeout=60 * SLOW)


@pytest.fixture(scope="session")
def rest():
    """Raw HTTP, for what other clients send."""
    with httpx.Client(base_url=BASE, headers={"Authorization": "Bearer " + KEY}, timeout=60 * SLOW) as c:
        yield c


@pytest.fixture(scope="module")
def sbx(client):
    """A sandbox that the tests of one file share."""
    s = client.sandboxes.create(timeout_sec=600 * SLOW, name="shared")
    yield s
    with contextlib.suppress(Exception):
        s.destroy()


@pytest.fixture
def make(client):
    """Creates sandboxes that end with the test."""
    made = []

    def create(*args, **kwargs):
        kwargs.setdefault("timeout_sec", 120 * SLOW)
        s = client.sandboxes.create(*args, **kwargs)
        made.append(s)
        return s

    yield create
    for s in made:
        with contextlib.suppress(Exception):
            client.sandboxes.delete(s.id)


def eventually(check, seconds=15, every=0.1):
    """Returns check()'s first true answer; fails when none comes in time."""
    end = time.monotonic() + seconds * SLOW
    while True:
        value = check()
        if value:
            return value
        assert time.monotonic() < end, "condition not met in %s s" % (seconds * SLOW)
        time.sleep(every)
