"""Who may ask: keys, hosts and origins. Each test is the attack itself, and the server answers others as before."""

import hmac
import json
import socket

import httpx
import pytest

from graft.errors import ServeError
from graft.serve.http import doors
from graft.serve.http.settings import Settings
from graft.serve.root import Root
from http_server import ADMIN, KEY, engine_for, running

BODY = {"model": "base", "prompt": "Where", "max_tokens": 1}
CLOSED = ["/v1/models", "/v1/models/base", "/metrics", "/openapi.json", "/docs", "/nowhere", "/v1", "/health/", "//health", "/Health"]


@pytest.fixture(scope="module")
def locked(adapters_folder, tiny_llama, tiny_tokenizer):
    """A server with both keys."""
    root = Root(adapters_folder)
    with engine_for(tiny_llama, tiny_tokenizer, root) as engine, running(engine, root, api_key=KEY, admin_key=ADMIN) as found:
        yield found


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def error(response):
    """The error of a response, in OpenAI's shape."""
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    assert list(response.json()["error"]) == ["message", "type", "param", "code"]
    return response.json()["error"]


@pytest.mark.parametrize("path", CLOSED)
@pytest.mark.parametrize(
    "headers", [{}, bearer(KEY[:-1]), bearer(KEY + "x"), {"Authorization": "Bearer"}, {"Authorization": KEY}, {"X-API-Key": KEY}]
)
def test_everything_that_is_not_open_is_closed(locked, path, headers):
    response = locked.get(path, headers=headers)
    assert response.status_code == 401
    assert error(response)["code"] == "invalid_api_key"
    assert KEY not in response.text


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_nothing_is_answered_without_a_key(locked, path):
    before = locked.engine.counts().adapters[None].requests
    for headers in ({}, bearer("wrong"), bearer(ADMIN), bearer(KEY.upper())):
        assert locked.post(path, BODY, headers=headers).status_code == 401
    assert locked.engine.counts().adapters[None].requests == before


def test_the_key_opens_and_is_no_admin_key(locked):
    assert locked.post("/v1/completions", BODY, headers=bearer(KEY)).status_code == 200
    assert locked.get("/metrics", headers=bearer(KEY)).status_code == 200
    assert locked.get("/metrics", headers=bearer(ADMIN)).status_code == 200
    for method in ("PUT", "DELETE"):
        assert httpx.request(method, f"{locked.url}/admin/adapters/cards", headers=bearer(KEY)).status_code == 401
        assert httpx.request(method, f"{locked.url}/admin/adapters/cards").status_code == 401
    assert httpx.put(f"{locked.url}/admin/adapters/cards", headers=bearer(ADMIN)).status_code == 200


def test_what_is_open_says_nothing_of_models(locked):
    for path in ("/health", "/ready", "/"):
        response = locked.get(path)
        assert response.status_code == 200
        assert "cards" not in response.text


def test_without_an_admin_key_nobody_loads(served):
    for key in ("None", ADMIN):
        response = httpx.put(f"{served.url}/admin/adapters/cards", headers=bearer(key))
        assert response.status_code == 403
        assert "--admin-key-file" in error(response)["message"]


def test_keys_are_compared_in_constant_time(locked, monkeypatch):
    seen = []

    def compared(one, other):
        seen.append((len(one), len(other)))
        return hmac.compare_digest(one, other)

    keys = doors.Keys(None, Settings("base", api_key=KEY, admin_key=ADMIN), ())
    monkeypatch.setattr(doors, "hmac", type("spy", (), {"compare_digest": staticmethod(compared)}))
    for guess in ("", KEY[0], KEY[:-1], KEY + "x", "\udc80", "x" * 10_000):
        with pytest.raises(doors.Refused):
            keys.check("/metrics", doors.given({"authorization": f"Bearer {guess}"}))
    assert set(seen) == {(32, 32)}  # whatever was guessed, and no first difference ends it: both keys, each time
    assert len(seen) == 12


@pytest.mark.parametrize("key", [b"\xff\xfe", b"\x00", b"a\tb", b"a" * 60_000])
def test_a_key_of_any_bytes_is_only_a_wrong_key(locked, key):
    with socket.create_connection(("127.0.0.1", locked.port), timeout=10) as raw:
        raw.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer " + key + b"\r\n\r\n")
        assert raw.recv(100).split()[1] in (b"401", b"400")
    assert locked.get("/health").status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.org", ""])
def test_only_this_machine_is_served_without_a_key(host):
    with pytest.raises(ServeError, match="can be reached from other machines: give an API key"):
        Settings("base", host=host)
    assert Settings("base", host=host, api_key=KEY).host == host
    assert Settings("base", host="127.0.0.9").api_key == Settings("base", host="::1").api_key == ""


@pytest.mark.parametrize("key", ["short", "with a space in it here", "tab\tand more of the key", "schlüssel-mit-umlaut"])
def test_a_key_that_can_be_guessed_or_not_sent_is_refused(key):
    for what in ("api_key", "admin_key"):
        with pytest.raises(ServeError, match="at least 16 characters"):
            Settings("base", **{what: key})
    with pytest.raises(ServeError, match="another than the API key"):
        Settings("base", api_key=KEY, admin_key=KEY)


REBOUND = [
    "evil.example",
    "evil.example:{port}",
    "localhost.evil.example",
    "127.0.0.1.evil.example:{port}",
    "",
    "[::2]:{port}",
    "localhost@evil",
]


@pytest.mark.parametrize("host", REBOUND)
def test_a_name_that_was_made_to_lead_here_is_refused(served, host):
    """DNS rebinding: a page's own name leads to 127.0.0.1, so that its requests are of one origin, but it is sent as Host."""
    name = host.format(port=served.port)
    response = served.post("/v1/completions", BODY, headers={"Host": name})
    assert response.status_code == 403
    assert error(response)["code"] == "host_not_allowed"
    assert served.get("/", headers={"Host": name}).status_code == 403


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:{port}", "127.0.0.1", "[::1]:{port}", "localhost.:{port}"])
def test_our_own_names_are_answered(served, host):
    assert served.post("/v1/completions", BODY, headers={"Host": host.format(port=served.port)}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:1", "http://127.0.0.1.evil.example", "http://a\x7fb", ""]
)
def test_pages_of_others_are_refused(served, origin):
    response = served.post("/v1/completions", BODY, headers={"Origin": origin})
    assert response.status_code == 403
    assert error(response)["code"] == "origin_not_allowed"


def test_our_own_page_is_answered(served):
    assert served.post("/v1/completions", BODY, headers={"Origin": served.url}).status_code == 200


def test_no_other_origin_is_ever_allowed(served):
    """A browser asks first (a preflight) before it sends JSON to another site; it needs a yes, and there is none."""
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    for origin in ("https://evil.example", served.url):
        response = httpx.options(f"{served.url}/v1/completions", headers={**asked, "Origin": origin})
        assert response.status_code in (403, 405)
        assert not [name for name in response.headers if name.startswith("access-control")]
    assert served.get("/v1/models").headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_what_a_form_can_send_is_no_request(served, kind):
    """Forms and simple requests need no preflight: they cannot have JSON's type."""
    response = httpx.post(f"{served.url}/v1/completions", content=json.dumps(BODY), headers={"Content-Type": kind})
    assert response.status_code == 415
    error(response)


def test_behind_a_proxy_its_name_is_named(adapters_folder, tiny_llama, tiny_tokenizer):
    names = doors.Names(None, Settings("base", hosts=("models.example",)))
    names.check({"host": "models.example", "origin": "https://models.example"})
    names.check({"host": "127.0.0.1:8000", "origin": "https://models.example"})
    with pytest.raises(doors.Refused):
        names.check({"host": "other.example"})
    doors.Names(None, Settings("base", api_key=KEY)).check({"host": "any.example"})  # a name proves nothing where a key is needed
    with pytest.raises(doors.Refused):
        doors.Names(None, Settings("base", api_key=KEY)).check({"host": "any.example", "origin": "https://other.example"})


def test_the_page_allows_nothing_but_itself(served):
    response = served.get("/")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["content-type"].startswith("text/html")
    assert served.get("/playground/nothing.js").status_code == 404
