"""Settings: how the server is reached, who may ask, and how much of everything a request may take."""

import ipaddress
from dataclasses import asdict, dataclass, field

from graft.errors import ServeError

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Limits:
    """What is refused: more bytes in a body, requests and answers under way at a time, or seconds until a head or a body has arrived and
    until an answer is whole. `new_tokens` is the most that are answered, whatever was asked for. How many prompts, messages, answers and
    stop texts one request may bring stands in graft.serve.http.schemas, and so in the document.
    """

    body_bytes: int = 4 << 20
    body_seconds: float = 30.0
    requests: int = 256
    answers: int = 1024
    connections: int = 1024
    head_seconds: float = 30.0
    new_tokens: int = 4096
    seconds: float = 600.0
    drain_seconds: float = 60.0

    def __post_init__(self) -> None:
        """Raise ServeError where a limit lets nothing through."""
        for name, value in asdict(self).items():
            if not value > 0:
                raise ServeError(f"{name} = {value} lets nothing through: it must be more than 0")


@dataclass(frozen=True)
class Settings:
    """`name`: what the base is called as a request's `model`. Without `api_key` nobody is asked for one, which loopback alone allows;
    without `admin_key` adapters cannot be loaded or unloaded. `hosts`: further values of the Host header that are answered.
    """

    name: str
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str = ""
    admin_key: str = ""
    hosts: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Raise ServeError where the server would be open to others than this machine, or a key can be guessed."""
        if not self.api_key and not is_loopback(self.host):
            raise ServeError(f"{self.host} can be reached from other machines: give an API key (--api-key-file), or stay on 127.0.0.1")
        for what, key in (("API", self.api_key), ("admin", self.admin_key)):
            if key and (len(key) < 16 or not key.isascii() or not key.isprintable() or " " in key):
                raise ServeError(f"the {what} key must have at least 16 characters, letters, digits and signs without spaces")
        if self.admin_key and self.admin_key == self.api_key:
            raise ServeError("the admin key must be another than the API key, which every user has")

    @property
    def known_hosts(self) -> frozenset[str] | None:
        """The names by which the server may be called; None for any: where a key is asked for, a name proves nothing."""
        if self.api_key and not self.hosts:
            return None
        return frozenset(name.lower() for name in (*LOOPBACK, self.host, *self.hosts))


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
