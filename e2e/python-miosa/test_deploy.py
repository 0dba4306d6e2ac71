"""Publishing (checklist: publish)."""
import uuid

from conftest import eventually
from test_previews import visit


def test_publish_and_publish_again(make, client, rest):
    s = make(name="site")
    s.files.write("/workspace/app/index.html", "version one\n")
    s.exec.run("echo private > /workspace/app/x")
    name = "site-" + uuid.uuid4().hex[:8]
    key = uuid.uuid4().hex
    d = s.deploy(name=name, output_path="/workspace/app", start_command="exec python3 -m http.server 8080", port=8080,
                 build_command="echo built > built.txt", health_check_path="/", idempotency_key=key)
    try:
        assert d["deployment_id"] and d["status"] == "live", d
        assert s.deploy(name=name, output_path="/workspace/app", start_command="exec python3 -m http.server 8080", port=8080,
                        build_command="echo built > built.txt", health_check_path="/", idempotency_key=key) == d
        url = d["public_url"]
        eventually(lambda: visit(url).text == "version one\n")
        assert visit(url + "/built.txt").text == "built\n"
        s.files.write("/workspace/app/index.html", "version two\n")
        assert visit(url).text == "version one\n"  # a copy, and not the sandbox itself
        again = s.deploy(name=name, output_path="/workspace/app", start_command="exec python3 -m http.server 8080", port=8080)
        assert again["public_url"] == url and again["revision"] == 2
        eventually(lambda: visit(url).text == "version two\n")
        s.destroy()
        assert visit(url).status_code == 200  # it goes on without its source
        assert d["deployment_id"] in [x["id"] for x in rest.get("/deployments").json()["data"]]
    finally:
        assert rest.delete("/deployments/" + d["deployment_id"]).status_code == 204
    eventually(lambda: visit(d["public_url"]).status_code != 200)
    assert rest.get("/deployments/" + d["deployment_id"]).status_code == 404


def test_a_deployment_is_kept_live(make, client, rest):
    """A command that ends is started again; a lost machine is made again, with its files."""
    s = make(name="kept")
    s.files.write("/workspace/app/index.html", "still here\n")
    name = "kept-" + uuid.uuid4().hex[:8]
    d = s.deploy(name=name, output_path="/workspace/app", start_command="exec python3 -m http.server 8080", port=8080,
                 health_check_path="/", build_command="echo built > built.txt")
    try:
        s.destroy()
        serving = client.sandboxes.get(d["sandbox_id"])
        serving.exec.run("pkill -f 'http[.]server'")
        again = eventually(lambda: live(rest, d, restarts=1), seconds=30)
        assert again["sandbox_id"] == d["sandbox_id"]
        assert visit(d["public_url"]).text == "still here\n"
        # The guest takes all memory, and its machine ends.
        rest.post("/sandboxes/%s/processes" % d["sandbox_id"], json={"command": "exec python3 -c 'b=[]\nwhile True: b.append(bytearray(b\"x\"*(64<<20)))'"})
        again = eventually(lambda: live(rest, d, restarts=2), seconds=60)
        assert again["sandbox_id"] != d["sandbox_id"] and again["public_url"] == d["public_url"]
        assert eventually(lambda: visit(d["public_url"])).text == "still here\n"
        assert visit(d["public_url"] + "/built.txt").text == "built\n"
        client.sandboxes.delete(again["sandbox_id"])
        assert rest.get("/deployments/" + d["deployment_id"]).json()["status"] == "stopped"
    finally:
        assert rest.delete("/deployments/" + d["deployment_id"]).status_code == 204
    assert not [x for x in rest.get("/snapshots").json()["data"] if x["name"] == "deployment-" + d["deployment_id"]]


def live(rest, d, restarts):
    now = rest.get("/deployments/" + d["deployment_id"]).json()
    return now if now["status"] == "live" and now["restarts"] == restarts else None
