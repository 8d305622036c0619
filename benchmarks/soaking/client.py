"""A small HTTP client on plain sockets: it can leave at any moment, and send what no library would."""

import asyncio
import json
import time
from dataclasses import dataclass, field

WAIT = 60.0  # seconds until a response that does not come is an error


@dataclass
class Reply:
    """What came: `status` (0: nothing), the body, a stream's events, and seconds to the first of them and to the end."""

    status: int = 0
    body: bytes = b""
    events: list = field(default_factory=list)
    first: float | None = None
    seconds: float = 0.0

    def json(self):
        """The body's JSON, or None."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    @property
    def sentence(self):
        """The error's sentence, or ""."""
        found = self.json()
        error = found.get("error") if isinstance(found, dict) else None
        late = next((event["error"] for event in self.events if "error" in event), None)
        return (error or late or {}).get("message", "") if isinstance(error or late or {}, dict) else ""


class Client:
    """Speaks to one port of this machine."""

    def __init__(self, port, api_key, admin_key):
        self.port, self.api_key, self.admin_key = port, api_key, admin_key

    def head(self, method, path, length=None, *, key=None, headers=()):
        """A request's first lines."""
        lines = {"Host": f"127.0.0.1:{self.port}", "Connection": "close", "Authorization": f"Bearer {self.api_key if key is None else key}"}
        if length is not None:
            lines |= {"Content-Type": "application/json", "Content-Length": str(length)}
        lines |= dict(headers)
        return (f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items()) + "\r\n").encode()

    async def ask(self, path, body, *, leave_after=None, method="POST", key=None, headers=()):
        """Send JSON (or bytes as they are) and read the reply; with `leave_after`, hang up after so many events (0: at once)."""
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        head = self.head(method, path, None if body is None else len(data), key=key, headers=headers)
        return await self.raw(head + data, leave_after=leave_after)

    async def raw(self, data, *, leave_after=None, wait=WAIT):
        """Send bytes and read what comes."""
        began, reply = time.monotonic(), Reply()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22)
        try:
            writer.write(data)
            await asyncio.wait_for(writer.drain(), wait)
            if leave_after != 0:
                await asyncio.wait_for(self.read(reader, reply, began, leave_after), wait)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the server hung up: what it had said is in the reply
        finally:
            writer.transport.abort()
        reply.seconds = time.monotonic() - began
        return reply

    async def read(self, reader, reply, began, leave_after):
        """A status line, headers and a body."""
        status = (await reader.readline()).split()
        if len(status) < 2:
            return
        reply.status, headers = int(status[1]), {}
        while (line := await reader.readline()).strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        async for part in parts(reader, headers):
            reply.body += part
            if headers.get("content-type", "").startswith("text/event-stream"):
                reply.first = reply.first or time.monotonic() - began
                whole, _, reply.body = reply.body.rpartition(b"\n\n")
                events = [line[5:].strip() for line in whole.split(b"\n") if line.startswith(b"data:")]
                reply.events += [json.loads(event) for event in events if event != b"[DONE]"]
                if leave_after is not None and len(reply.events) >= leave_after:
                    return


async def parts(reader, headers):
    """The parts of a body as they come: in chunks, of a length, or until the connection ends."""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readline()).split(b";")[0] or b"0", 16):
            yield await reader.readexactly(size)
            await reader.readline()
    elif "content-length" in headers:
        yield await reader.readexactly(int(headers["content-length"]))
    else:
        while part := await reader.read(1 << 16):
            yield part
