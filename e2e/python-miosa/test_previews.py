"""Previews through the edge (checklist: previews; wire: previews)."""
import os
import time
from urllib.parse import urlsplit

import httpx
import pytest
from miosa.errors import MiosaError, NotFoundError, ValidationError

from conftest import BASE, SLOW, eventually

ORIGIN = "{0.scheme}://{0.netloc}".format(urlsplit(BASE))


def visit(url, **kw):
    """Asks this server for a preview's URL by its host name, over the plain listener."""
    u = urlsplit(url)
    headers = {"Host": u.netloc, **kw.pop("headers", {})}
    target = ORIGIN + (u.path or "/") + ("?" + u.query if u.query else "")
    return httpx.get(target, headers=headers, timeout=20 * SLOW, **kw)


@pytest.fixture(scope="module")
def web(client):
    s = client.sandboxes.create(timeout_sec=600 * SLOW)
    s.processes.start("mkdir -p /workspace/www && cd /workspace/www && echo hello-preview > index.html && exec python3 -m http.server 3000")
    eventually(lambda: s.exec.run("curl -sf localhost:3000").exit_code == 0)
    yield s
    s.destroy()


def test_public(web):
    p = web.previews.create(port=3000, label="web")
    assert p["visibility"] == "public" and p["port"] == 3000 and p["url"].startswith("https://")
    r = visit(p["url"])
    assert (r.status_code, r.text) == (200, "hello-preview\n")
    assert p["id"] in [x["id"] for x in web.previews.list()]
    assert web.previews.get(p["id"])["url"] == p["url"]
    web.previews.delete(p["id"])
    eventually(lambda: visit(p["url"]).status_code == 404)
    with pytest.raises(NotFoundError):
        web.previews.get(p["id"])


def test_slug(web, make):
    slug = "mine-%x" % time.time_ns()
    p = web.previews.create(port=3000, slug=slug)
    assert urlsplit(p["url"]).hostname.startswith(slug + ".") and visit(p["url"]).status_code == 200
    with pytest.raises(MiosaError) as e:
        make().previews.create(port=80, slug=slug)
    assert e.value.status_code == 409 and e.value.code == "NAME_TAKEN"
    for bad in ("UPPER", "-x", "8080-abc", "api", "a.b"):
        with pytest.raises(ValidationError, match="slug"):
            web.previews.create(port=3000, slug=bad)


def test_private_needs_a_token(web):
    p = web.previews.create(port=3000, visibility="private")
    assert visit(p["url"]).status_code in (401, 403)
    share = web.previews.share(p["id"], ttl_seconds=60)
    token = share["preview_token"]
    assert visit(share["share_url"], follow_redirects=False).status_code in (200, 302, 303, 307)
    assert visit(p["url"], headers={"x-miosa-preview-token": token}).text == "hello-preview\n"
    assert visit(p["url"], headers={"x-miosa-preview-token": token[:-1] + ("0" if token[-1] != "0" else "1")}).status_code in (401, 403)
    web.previews.revoke_share(p["id"])
    eventually(lambda: visit(p["url"], headers={"x-miosa-preview-token": token}).status_code in (401, 403))
    short = web.previews.share(p["id"], ttl_seconds=1)
    eventually(lambda: visit(p["url"], headers={"x-miosa-preview-token": short["preview_token"]}).status_code in (401, 403))


def test_token_does_not_reach_the_guest(web, rest):
    web.exec.run("""cat > /workspace/echo.py <<'X'
import http.server
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        b = (self.path + "\\n" + str(self.headers)).encode()
        self.send_response(200); self.end_headers(); self.wfile.write(b)
http.server.HTTPServer(("", 3001), H).serve_forever()
X""")
    web.processes.start("python3 /workspace/echo.py")
    eventually(lambda: web.exec.run("curl -sf localhost:3001").exit_code == 0)
    p = web.previews.create(port=3001, visibility="private")
    token = web.previews.share(p["id"])["preview_token"]
    r = visit(p["url"] + "/x?a=1&preview_token=" + token, headers={"x-miosa-preview-token": token}, follow_redirects=False)
    if r.status_code == 200:
        assert token not in r.text
    r = visit(p["url"] + "/x?a=1", headers={"x-miosa-preview-token": token})
    assert r.status_code == 200 and token not in r.text and "/x?a=1" in r.text


def test_go_clients_share_body(web, rest):
    p = rest.post(f"/sandboxes/{web.id}/previews", json={"port": 3000, "visibility": "private"}).json()
    r = rest.post(f"/sandboxes/{web.id}/previews/{p['id']}/share", json={"expires_in_sec": 60}).json()
    assert r["preview_token"] == r["data"]["preview_token"] and r["share_token_prefix"] in r["preview_token"]


def test_expose_and_tokens(web):
    url = web.expose(3000)
    assert visit(url).status_code == 200 and web.expose(3000) == url
    t = web.preview_token(expires_in=60)
    assert t["token"] and t["scope"] == "read" and t["url"]
    s = web.share.create(expires_in=60)
    assert s["share_id"] in [x["share_id"] for x in web.share.list()]
    web.share.revoke(s["share_id"])
    assert s["share_id"] not in [x["share_id"] for x in web.share.list()]


def test_embedding(web, rest):
    p = rest.post(f"/sandboxes/{web.id}/previews", json={"port": 3000, "frame_ancestors": ["https://app.example.com"]}).json()
    r = visit(p["url"])
    assert "https://app.example.com" in r.headers.get("content-security-policy", "")
    assert rest.post(f"/sandboxes/{web.id}/previews", json={"port": 3000, "frame_ancestors": ["javascript:x"]}).status_code == 422


def test_lives_only_while_running(make, rest):
    s = make()
    s.processes.start("exec python3 -m http.server 3000")
    url = s.expose(3000)
    eventually(lambda: visit(url).status_code == 200)
    s.pause()
    eventually(lambda: visit(url).status_code in (404, 410, 502, 503))
    s.resume()
    eventually(lambda: visit(url).status_code == 200)
    s.destroy()
    eventually(lambda: visit(url).status_code in (404, 410, 502))


def test_bad_ports(web):
    for port in (0, 65536, 49983):
        with pytest.raises(ValidationError, match="port"):
            web.previews.create(port=port)


def test_domains(client, rest):
    assert client.tenant.preview_domain.get()["status"] == "not_configured"
    d = client.tenant.preview_domain.set("preview.example.com")
    try:
        assert d["status"] == "pending_dns" and d["dns_instructions"]["type"] == "CNAME" and d["dns_instructions"]["name"] == "*.preview.example.com"
        assert d["preview_domain"] == d["domain"] == "preview.example.com"
        assert rest.put("/tenant/preview-domain", json={"domain": "preview.example.com"}).json()["id"] == d["id"]
        assert rest.put("/tenant/preview-domain", json={"domain": "no dots"}).status_code == 422
        assert client.tenant.preview_domain.verify()["verified"] is False
    finally:
        client.tenant.preview_domain.delete()
    assert client.tenant.preview_domain.get()["status"] == "not_configured"


def test_preview_traffic_is_activity(make, client):
    s = make(idle_timeout_sec=3 * SLOW)
    s.processes.start("exec python3 -m http.server 3000")
    url = s.expose(3000)
    eventually(lambda: visit(url).status_code == 200)
    end = time.monotonic() + 5 * SLOW
    while time.monotonic() < end:
        assert visit(url).status_code == 200
        time.sleep(0.4)
    assert client.sandboxes.get(s.id).state == "running"
