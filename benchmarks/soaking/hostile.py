"""Requests that nobody honest sends, each with the statuses that may answer it; 0 is a connection closed without a word.

None may be answered by 200 where that is not said, by 5xx ever, and every JSON refusal says a sentence.
"""

import json

from soaking.place import BROKEN

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
REFUSED = (400,)
TRICKS = (
    "../../etc/passwd", "/etc/passwd", "lora-2/../lora-32", "..%2f..%2fetc", "swap\x00", "~root", "C:\\windows", ".", "..", "", " ",
    "lora-2 ",
    "LORA-2", "a" * 5000, "ｌora-2", "lora-2\n", "broken-link/../lora-2",
)  # fmt: skip
FIELDS = (
    {"n": 10**9}, {"n": 0}, {"max_tokens": -1}, {"max_tokens": "9"}, {"max_tokens": 10**30}, {"temperature": -1}, {"temperature": "hot"},
    {"top_p": 7}, {"top_k": -3}, {"logprobs": 10**9}, {"stop": ["x"] * 1000}, {"stop": [""]},
    {"stop": "x" * 10**5}, {"stream": "yes"}, {"prompt": []}, {"prompt": ""}, {"prompt": [[]]}, {"prompt": {"a": 1}}, {"prompt": [1.5]},
    {"prompt": [-1]}, {"prompt": [10**9]}, {"prompt": [2**31]}, {"prompt": [1] * 600}, {"prompt": ["t1", 2]}, {"model": 3}, {"model": None},
    {"best_of": 3}, {"suffix": "x"}, {"logit_bias": {"1": 5}}, {"presence_penalty": 1}, {"__class__": "x"}, {"stream_options": 7},
)  # fmt: skip
CHATS = (
    {"messages": []}, {"messages": "hello"}, {"messages": [{"role": "user"}]}, {"messages": [{"role": "wizard", "content": "x"}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]},
    {"messages": [{"role": "user", "content": "t1 " * 600}]}, {"messages": [{"role": "user", "content": "x"}] * 5000}, {"tools": []},
)  # fmt: skip
BODIES = (
    b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe\x00", b"[" * 100_000, b'{"a":' * 50_000,
    b'{"model": "base", "prompt": "t1", "temperature": NaN}',
    b'{"model": "base", "prompt": "t1", "temperature": 1e999}', b'{"model": "base", "model": 3, "prompt": "t1"}', b"1" * 100_000,
)  # fmt: skip
PATHS = (
    "/playground/../../etc/passwd", "/playground/%2e%2e/%2e%2e/etc/passwd", "/playground/..%5c..%5cwin.ini", "//etc/passwd",
    "/v1/models/..%2f..%2fetc",
    "/v1/models/%00", "/static/x", "/.env", "/v1/../admin/adapters/lora-2", "/v1/models/" + "a" * 6000, "/%ff%fe",
    "/docs?x=%0d%0aSet-Cookie:%20a=b",
)  # fmt: skip


UNSPOKEN = ("no HTTP", "headers of 200 kB", "two lengths")  # no HTTP: refused before there is a request, in no form of ours


def body(**fields):
    """A request that would be right but for the fields given."""
    return {"model": "base", "prompt": "t1 t2", "max_tokens": 4} | fields


def attacks(client):
    """name -> (a function of a random generator that makes the request, the statuses that may answer)."""
    return {
        "body that is no request": (lambda rng: client.ask(rng.choice((COMPLETIONS, CHAT)), rng.choice(BODIES)), REFUSED),
        "field that cannot be": (lambda rng: client.ask(COMPLETIONS, body(**rng.choice(FIELDS))), REFUSED),
        "chat that cannot be": (lambda rng: client.ask(CHAT, {"model": "base"} | rng.choice(CHATS)), REFUSED),
        "body of 8 MB": (lambda rng: client.ask(COMPLETIONS, b" " * (8 << 20)), (413, 0)),
        "body of 8 MB in chunks": (lambda rng: chunked(client), (413, 0)),
        "body that never comes": (lambda rng: client.raw(client.head("POST", COMPLETIONS, 10**12)), (413, 0)),
        "two lengths": (lambda rng: smuggled(client), (400, 0)),
        "unknown adapter": (lambda rng: client.ask(COMPLETIONS, body(model=f"nobody-{rng.randrange(10**6)}")), (404,)),
        "path as adapter": (lambda rng: client.ask(COMPLETIONS, body(model=rng.choice(TRICKS))), (400, 404)),
        "broken adapter": (lambda rng: client.ask(COMPLETIONS, body(model=rng.choice(BROKEN))), (400, 404)),
        "broken adapter loaded": (lambda rng: admin(client, "PUT", rng.choice(BROKEN)), (400, 404)),
        "path as adapter loaded": (lambda rng: admin(client, "PUT", rng.choice(("..%2f..", "%2e%2e", "a%00b", "~", "-"))), (400, 404)),
        "admin with a user's key": (
            lambda rng: client.ask(f"/admin/adapters/{rng.choice(('lora-2', 'x'))}", None, method="DELETE"),
            (401,),
        ),
        "wrong key": (lambda rng: client.ask(COMPLETIONS, body(), key=rng.choice(("x", "", "k" * 9000, "é"))), (400, 401, 0)),
        "path outside": (lambda rng: client.raw(client.head("GET", rng.choice(PATHS))), (400, 401, 404)),
        "method that is none": (
            lambda rng: client.ask("/v1/models", None, method=rng.choice(("DELETE", "TRACE", "PUT", "XYZZY"))),
            (400, 405),
        ),
        "another site's page": (lambda rng: client.ask(COMPLETIONS, body(), headers={"Origin": "http://evil.example"}), (403,)),
        "no JSON": (lambda rng: client.ask(COMPLETIONS, body(), headers={"Content-Type": "text/plain"}), (415,)),
        "no HTTP": (lambda rng: client.raw(rng.randbytes(2000) + b"\r\n\r\n"), (400, 0)),
        "headers of 200 kB": (lambda rng: client.raw(client.head("GET", "/v1/models", headers={"X": "x" * 200_000})), (400, 431, 0)),
        "half a request": (lambda rng: client.raw(client.head("POST", COMPLETIONS, 500) + b'{"model":', leave_after=0), (0,)),
        "lone surrogate": (lambda rng: client.ask(COMPLETIONS, b'{"model": "base", "prompt": "\\ud800", "max_tokens": 2}'), (200, 400)),
    }


def admin(client, method, name):
    """A request to load or unload."""
    return client.ask(f"/admin/adapters/{name}", None, method=method, key=client.admin_key)


async def chunked(client):
    """8 MB without saying so before."""
    head = client.head("POST", COMPLETIONS, headers={"Transfer-Encoding": "chunked", "Content-Type": "application/json"})
    return await client.raw(
        head + b"100000\r\n" + b" " * (1 << 20) + b"\r\n" + (b"100000\r\n" + b" " * (1 << 20) + b"\r\n") * 7 + b"0\r\n\r\n"
    )


async def smuggled(client):
    """A body with two lengths: what is left of it must not become a request."""
    data = json.dumps(body()).encode()
    head = client.head("POST", COMPLETIONS, len(data), headers={"Transfer-Encoding": "chunked", "Connection": "keep-alive"})
    return await client.raw(head + b"0\r\n\r\nDELETE /admin/adapters/lora-2 HTTP/1.1\r\nHost: x\r\n\r\n")
