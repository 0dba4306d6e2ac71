"""The documentation's own samples, run as they stand.

Only what a test must change is changed: an example id becomes a real one, long
waits become short. Left out, and why: samples with volumes, pause and denied
domain names (features of their own), and samples that the SDK itself cannot run
(`for info in Sandbox.list()`: it returns a paginator).
"""
import re
import subprocess
import sys

import pytest

from conftest import only_moru

pytestmark = only_moru

SAMPLES = {
    "default": """
from moru import Sandbox

# Default 'base' template
sandbox = Sandbox.create()

# Specific template
sandbox = Sandbox.create("python")
""",
    "all options": """
from moru import Sandbox
sandbox = Sandbox.create(
    template="python",
    timeout=600,              # 10 minutes (seconds)
    metadata={"project": "my-agent", "user_id": "123"},
    envs={"API_KEY": "secret", "DEBUG": "true"},
    allow_internet_access=True,
    secure=True,
)
""",
    "connect": """
from moru import Sandbox

# Connect by ID
sandbox = Sandbox.connect("sbx_abc123...")

# Check if still running
if sandbox.is_running():
    result = sandbox.commands.run("echo 'Reconnected!'")
assert result.stdout == "Reconnected!\\n"
""",
    "session recovery": """
import json
from moru import Sandbox

# Save sandbox ID
sandbox = Sandbox.create()
with open("session.json", "w") as f:
    json.dump({"sandbox_id": sandbox.sandbox_id}, f)

# Later, reconnect
with open("session.json") as f:
    data = json.load(f)
sandbox = Sandbox.connect(data["sandbox_id"])
assert sandbox.is_running()
""",
    "information": """
from moru import Sandbox
sandbox = Sandbox.create()

# Basic properties
print(sandbox.sandbox_id)      # "sbx_abc123..."

# Detailed info
info = sandbox.get_info()
print(f"Template: {info.template_id}")
print(f"Started: {info.started_at}")
print(f"Ends: {info.end_at}")
print(f"State: {info.state}")
print(f"CPUs: {info.cpu_count}")
print(f"Memory: {info.memory_mb} MB")
""",
    "metrics": """
from moru import Sandbox
sandbox = Sandbox.create()
metrics = sandbox.get_metrics()
for m in metrics:
    print(f"CPU: {m.cpu_used_pct:.1f}%")
    print(f"Memory: {m.mem_used / 1024 / 1024:.0f} MB / {m.mem_total / 1024 / 1024:.0f} MB")
    print(f"Disk: {m.disk_used / 1024 / 1024:.0f} MB / {m.disk_total / 1024 / 1024:.0f} MB")
""",
    "timeouts": """
from moru import Sandbox
# At creation (seconds)
sandbox = Sandbox.create(timeout=600)  # 10 minutes

# Extend later
sandbox.set_timeout(1800)  # 30 minutes from now

# Static method
Sandbox.set_timeout("sbx_abc123...", 1800)
""",
    "remaining time": """
from moru import Sandbox
sandbox = Sandbox.create()
from datetime import datetime

info = sandbox.get_info()
remaining = info.end_at - datetime.now(info.end_at.tzinfo)
print(f"Expires in {remaining.total_seconds()} seconds")
assert 290 < remaining.total_seconds() <= 300
""",
    "timeout error": """
from moru import Sandbox
from moru.exceptions import TimeoutException
sandbox = Sandbox.create(timeout=4)
try:
    # This might timeout if the command takes too long
    result = sandbox.commands.run("sleep 120", timeout=90)
except TimeoutException:
    print("Command or sandbox timed out")
    # Check if sandbox is still running
    if not sandbox.is_running():
        print("Sandbox was terminated")
""",
    "kill": """
from moru import Sandbox
sandbox = Sandbox.create()
# Do some work...
result = sandbox.commands.run("echo 'Hello'")
# Terminate the sandbox
sandbox.kill()
""",
    "kill by id": """
from moru import Sandbox
# Kill directly by ID
Sandbox.kill("sbx_abc123...")
""",
    "context manager": """
from moru import Sandbox
with Sandbox.create() as sandbox:
    result = sandbox.commands.run("echo 'Hello'")
    print(result.stdout)
# Sandbox is automatically killed when exiting the context
assert not sandbox.is_running()
""",
    "async context manager": """
import asyncio
from moru import AsyncSandbox
async def main():
    async with await AsyncSandbox.create() as sandbox:
        result = await sandbox.commands.run("echo 'Hello'")
        print(result.stdout)
    # Sandbox is automatically killed
asyncio.run(main())
""",
    "kill error handling": """
from moru import Sandbox
from moru.exceptions import NotFoundException
try:
    sandbox = Sandbox.connect("sbx_abc123...")
    sandbox.kill()
except NotFoundException:
    print("Sandbox already terminated")
""",
    "graceful shutdown": """
from moru import Sandbox
sandbox = Sandbox.create()
# Start a background process
sandbox.commands.run("python3 server.py", background=True)
# Graceful shutdown
sandbox.commands.run("sleep 1000 & until pkill -SIGTERM sleep; do :; done")
# Wait for cleanup
import time
time.sleep(2)
# Now kill
sandbox.kill()
""",
    "no internet": """
from moru import Sandbox

# Disable internet access entirely
sandbox = Sandbox.create(allow_internet_access=False)
""",
    "allow specific destinations": """
from moru import Sandbox
sandbox = Sandbox.create(
    network={
        "allow_out": ["api.openai.com", "8.8.8.8/32"],
        "deny_out": [],
        "allow_public_traffic": True,
    }
)
""",
    "exposing ports": """
from moru import Sandbox

sandbox = Sandbox.create()

# Start a web server
sandbox.commands.run("python3 -m http.server 8080", background=True)

# Get the public URL for port 8080
host = sandbox.get_host(8080)
print(f"Server available at: https://{host}")
assert host.startswith("8080-" + sandbox.sandbox_id)
""",
    "environment": """
from moru import Sandbox

sandbox = Sandbox.create(
    envs={
        "API_KEY": "secret_key",
        "DEBUG": "true"
    }
)

result = sandbox.commands.run("echo $API_KEY")
print(result.stdout)  # secret_key
assert result.stdout == "secret_key\\n"
result = sandbox.commands.run(
    "echo $MY_VAR",
    envs={"MY_VAR": "Hello"}
)
assert result.stdout == "Hello\\n"
""",
    "metadata": """
from moru import Sandbox

sandbox = Sandbox.create(
    metadata={
        "user_id": "user_123",
        "project": "my-agent",
        "environment": "production"
    }
)
""",
    "errors": """
from moru import Sandbox
from moru.exceptions import (
    NotFoundException,
    TimeoutException,
    AuthenticationException,
)

try:
    sandbox = Sandbox.connect("iunknown")
except AuthenticationException:
    print("Invalid API key")
except NotFoundException:
    print("Template not found")
except TimeoutException:
    print("Sandbox creation timed out")
""",
}


@pytest.mark.parametrize("name", SAMPLES)
def test_sample(name, sdk, make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = SAMPLES[name]
    if "sbx_abc123..." in code:
        code = code.replace("sbx_abc123...", make().sandbox_id)
    if "asyncio.run" in code:  # a second loop in one process is not the SDK's idea of a program
        subprocess.run([sys.executable, "-c", code], check=True, timeout=110)
        return
    made = []
    create = sdk.Sandbox.create

    def recording(*args, **kwargs):
        sbx = create(*args, **kwargs)
        made.append(sbx)
        return sbx

    monkeypatch.setattr(sdk.Sandbox, "create", recording)
    try:
        exec(compile(code, "sample: " + name, "exec"), {"__name__": "__main__"})
    finally:
        for sbx in made:
            sbx.kill()


def test_samples_are_the_documents():
    """A sample that lost its SDK import would prove nothing."""
    for name, code in SAMPLES.items():
        assert re.search(r"from moru import", code), name
