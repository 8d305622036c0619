"""A stand-in for the server: the playground's files, and an API that streams prepared answers at a prepared pace, or fails as told."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from graft.serve.playground import HEADERS, PAGES

MODELS = [
    {"id": "tiny", "object": "model", "parent": None, "chat": True},
    {"id": "cards", "object": "model", "parent": "tiny", "methods": "lora", "virtual_tokens": 0, "bytes": 3_210_000},
    {"id": "polite", "object": "model", "parent": "tiny", "methods": "prefix", "virtual_tokens": 16, "bytes": 412_000},
    {"id": "cold", "object": "model", "parent": "tiny"},
]


class Stub(ThreadingHTTPServer):
    """`answers[model]`: a list of texts, an int (a status) or an Exception (in the middle); `seen`: the requests' bodies."""

    daemon_threads = True

    def __init__(self, answers, *, key="", pause=0.0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.key, self.pause, self.seen, self.left = answers, key, pause, [], []
        self.go = threading.Event()
        self.go.set()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.go.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *words):
        """Say nothing."""

    def give(self, status, kind, body, headers=()):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def give_json(self, status, value):
        self.give(status, "application/json", json.dumps(value).encode())

    def allowed(self):
        if not self.server.key or self.headers.get("Authorization") == f"Bearer {self.server.key}":
            return True
        self.give_json(401, {"error": {"message": "The API key is missing or wrong: send it as Authorization: Bearer KEY."}})
        return False

    def do_GET(self):
        if self.path in PAGES:
            kind, body = PAGES[self.path]
            self.give(200, kind, body, HEADERS)
        elif self.allowed():
            self.give_json(200, {"object": "list", "data": MODELS})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed():
            return
        self.server.seen.append((self.path, body))
        answer = self.server.answers[body["model"]]
        if isinstance(answer, int):
            message = f"The adapter '{body['model']}' (lora) cannot be served: a tensor is not finite."
            self.give_json(answer, {"error": {"message": message}})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            self.stream(body["model"], answer)
        except OSError:
            self.server.left.append(body["model"])

    def stream(self, model, answer):
        for number, piece in enumerate(answer, 1):
            self.server.go.wait(20)
            time.sleep(self.server.pause)
            if isinstance(piece, Exception):
                return self.event({"error": {"message": str(piece)}})
            usage = {"prompt_tokens": 5, "completion_tokens": number, "total_tokens": 5 + number}
            self.event({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}], "usage": usage})
        self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, value):
        self.wfile.write(f"data: {json.dumps(value)}\n\n".encode())
        self.wfile.flush()
