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
