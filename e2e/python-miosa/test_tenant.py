"""Secrets, events, usage, previews, templates, actions (checklist: env and secrets, events, previews, billing, templates)."""
import json
import os
import subprocess
import sys
import threading
import time
import uuid

import httpx
import pytest
from miosa.errors import MiosaError, NotFoundError, ValidationError

from conftest import BASE, KEY, eventually


def test_secrets(client, make, rest):
    s = make()
    value = "sk-live-" + uuid.uuid4().hex
    name = "openai-" + uuid.uuid4().hex[:6]
    made = s.secrets.set(name=name, value=value, expose_as_env="OPENAI_API_KEY")
    sid = (made.get("data") or made)["id"]
    seen = s.exec.run("echo $OPENAI_API_KEY").stdout.strip()
    assert seen.startswith("miosa-tok-") and value not in seen
    for answer in (rest.get("/egress/secrets").text, rest.get("/egress/secrets/" + sid).text, json.dumps(made), json.dumps(s.secrets.list())):
        assert value not in answer and name in answer
    rest.patch("/egress/secrets/" + sid, json={"value": "rotated-" + uuid.uuid4().hex}).raise_for_status()
    got = rest.get("/egress/secrets/" + sid).json()
    assert got["version"] == 2 and got["rotated_at"]
    assert s.exec.run("echo $OPENAI_API_KEY").stdout.strip() == seen
    assert rest.delete("/egress/secrets/" + sid).status_code == 204
    assert s.exec.run("echo [$OPENAI_API_KEY]").stdout == "[]\n"
    assert rest.get("/egress/secrets/" + sid).status_code == 404


def test_events(client):
    s = client.sandboxes.create(timeout_sec=120)
    seen, done = [], threading.Event()

    def follow():
        with httpx.stream("GET", f"{BASE}/sandboxes/{s.id}/events", headers={"Authorization": "Bearer " + KEY}, timeout=60) as r:
            for line in r.iter_lines():
                if line.startswith("data: "):
                    seen.append(json.loads(line[6:]))
        done.set()  # the stream ends with the sandbox

    t = threading.Thread(target=follow, daemon=True)
    t.start()
    s.exec.run("exit 5")
    s.files.write("/workspace/f", "x")
    eventually(lambda: {"sandbox.exec.completed", "sandbox.file.changed"} <= {e["type"] for e in seen})
    s.pause()
    s.resume()
    s.destroy()
    assert done.wait(20)
    types = [e["type"] for e in seen]
    life = [t for t in types if t.count(".") == 1]
    assert life == ["sandbox.created", "sandbox.running", "sandbox.paused", "sandbox.resumed", "sandbox.destroyed"]
    assert seen[-1]["reason"] == "api"
    done_exec = next(e for e in seen if e["type"] == "sandbox.exec.completed")
    assert done_exec["exit_code"] == "5"
    ids = [int(e["id"]) for e in seen]
    assert ids == sorted(ids)
    rest = []
    with httpx.stream("GET", f"{BASE}/sandboxes/{s.id}/events", headers={"Authorization": "Bearer " + KEY, "Last-Event-ID": seen[-2]["id"]}, timeout=60) as r:
        for line in r.iter_lines():
            if line.startswith("data: "):
                rest.append(json.loads(line[6:])["type"])
    assert rest == ["sandbox.destroyed"]


def test_events_through_the_client(client, make):
    s = make()
    for e in s.events.stream():
        assert e["type"] == "sandbox.created" or e.get("event") == "sandbox.created"
        break


def test_tenant_stream(client):
    got = []

    def follow():
        with httpx.stream("GET", f"{BASE}/events/stream", params={"types": "sandbox.created,sandbox.dest*"}, headers={"Authorization": "Bearer " + KEY}, timeout=60) as r:
            got.append(None)
            for line in r.iter_lines():
                if line.startswith("data: "):
                    got.append(json.loads(line[6:]))

    threading.Thread(target=follow, daemon=True).start()
    eventually(lambda: got)
    s = client.sandboxes.create(timeout_sec=60)
    s.destroy()
    eventually(lambda: [e["type"] for e in got[1:] if e["sandbox_id"] == s.id] == ["sandbox.created", "sandbox.destroyed"])


def test_usage(client, rest):
    user = uuid.uuid4().hex
    s = client.sandboxes.create(timeout_sec=120, external_user_id=user)
    time.sleep(2.2)
    u = s.usage()
    assert u["sandbox_id"] == s.id and u["runtime_sec"] >= 2 and u["provisioned_vcpu_ms"] >= 2000
    assert u["provisioned_memory_mb_ms"] == 1024 * u["provisioned_vcpu_ms"] and u["provisioned_disk_mb_ms"] == 0
    s.pause()
    a = s.usage()
    time.sleep(1.2)
    b = s.usage()
    assert b["provisioned_vcpu_ms"] == a["provisioned_vcpu_ms"] and b["provisioned_disk_mb_ms"] > a["provisioned_disk_mb_ms"]
    s.destroy()
    c = s.usage()
    time.sleep(0.5)
    assert s.usage() == c
    rows = client.usage.get(group_by="external_user_id", period="7d")["results"]
    row = next(r for r in rows if r["external_user_id"] == user)
    assert row["sandbox_seconds"] >= 2
    assert client.usage.current() and rest.get("/credits/balance").json()["tenant_id"]


def test_templates(client, rest):
    ts = client.sandboxes.list_templates()
    assert ts["default_template_id"] == "miosa-sandbox" and ts["data"][0]["id"] == "miosa-sandbox"
    assert {"python", "miosa-sandbox"} <= {n for t in ts["data"] for n in [t["slug"], *t["aliases"]]}
    t = client.sandboxes.get_template("miosa-sandbox")
    assert (t["cpu_count"], t["memory_mb"], t["disk_mb"]) == (1, 1024, 3072) and t["state"] == "ready"
    assert rest.get("/sandbox-templates/miosa-sandbox/versions").json()["data"][0]["current"] is True
    assert client.sandboxes.get_build_spec_schema()["properties"]["from"]
    assert client.sandboxes.validate_build_spec({"from": "miosa-sandbox", "steps": [{"run": "true"}]})["valid"] is True
    with pytest.raises(ValidationError) as e:
        client.sandboxes.validate_build_spec({"vcpu": 99, "steps": [{}]})
    assert e.value.code == "INVALID_BUILDSPEC"
    with pytest.raises(NotFoundError):
        client.sandboxes.get_template("no-such")
    with pytest.raises(MiosaError) as e:
        client.sandboxes.create_template(name="x", build_spec={"from": "miosa-sandbox"})
    assert e.value.status_code == 501 and e.value.code == "NOT_SUPPORTED"


def test_python_template(make):
    s = make("python")
    assert s.exec.run("/opt/venv/bin/python -c 'print(1)'").stdout == "1\n"


def test_moru_sees_the_same_sandbox(make, client):
    import moru

    s = make(metadata={"k": "v"}, tags=["t"], external_user_id="u", timeout_sec=300)
    s.files.write("/workspace/from-miosa", "hello")
    m = moru.Sandbox.connect(s.id)
    assert m.files.read("/workspace/from-miosa") == "hello"
    assert m.get_info().metadata == {"k": "v"}  # nothing reserved shows
    m.files.write("/workspace/from-moru", "back")
    m.commands.run("echo by-moru > /workspace/by-moru", cwd="/workspace")
    assert s.exec.run("cat from-moru; echo more >> by-moru; cat by-moru").stdout == "backby-moru\nmore\n"
    m.kill()
    assert client.sandboxes.get(s.id).state == "destroyed"

    other = moru.Sandbox.create(timeout=60, metadata={"a": "b"})
    got = client.sandboxes.get(other.sandbox_id)
    assert got.state == "running" and got.metadata == {"a": "b"}
    assert got.exec.run("echo $HOME; pwd").stdout == "/home/sandbox\n/workspace\n"
    got.destroy()
    assert not other.is_running()


MCP = """
import asyncio, json, os, sys
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

async def main():
    params = StdioServerParameters(command=sys.executable, args=["-m", "miosa_mcp"], env=dict(os.environ))
    async with stdio_client(params) as (r, w), ClientSession(r, w) as s:
        await s.initialize()
        tools = {t.name for t in (await s.list_tools()).tools}
        async def call(name, **args):
            res = await s.call_tool(name, args)
            text = "".join(c.text for c in res.content)
            assert not res.isError, (name, text)
            return text
        box = json.loads(await call("sandbox_create", timeout_sec=120))
        box = box["sandbox"]
        out = await call("sandbox_exec", sandbox_id=box["id"], command="echo from-mcp")
        assert "from-mcp" in out, out
        await call("sandbox_write_file", sandbox_id=box["id"], path="/workspace/f", content="mcp-file")
        assert "mcp-file" in await call("sandbox_read_file", sandbox_id=box["id"], path="/workspace/f")
        assert box["id"] in await call("sandbox_list")
        await call("sandbox_destroy", sandbox_id=box["id"])
        print("ok", len(tools))

asyncio.run(main())
"""


def test_mcp():
    out = subprocess.run([sys.executable, "-c", MCP], capture_output=True, text=True, timeout=90)
    assert out.returncode == 0 and out.stdout.startswith("ok"), out.stdout[-2000:] + out.stderr[-4000:]


def test_unsupported_routes_say_so(rest):
    r = rest.post("/sandboxes/batch", json={})
    assert r.status_code == 501 and r.json()["error"]["code"] == "NOT_SUPPORTED"
