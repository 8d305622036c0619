"""Gate: how many requests, and answers to them, are under way at a time. For the event loop alone."""

from collections.abc import Callable

from graft.serve.http.refusals import Refused
from graft.serve.http.settings import Limits


class Gate:
    """Counts what is under way, and refuses more than the limits allow; once closed, everything."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.requests = self.answers = 0
        self.closed = False

    def enter(self, answers: int) -> Callable[[], None]:
        """Let a request in that wants so many answers; what is returned lets it out, once. Raises Refused."""
        if self.closed:
            raise Refused(503, "the server is stopping: ask another, or again in a while", code="stopping")
        if self.requests >= self.limits.requests or self.answers + answers > self.limits.answers:
            most = f"at most {self.limits.requests} requests and {self.limits.answers} answers are worked on at a time"
            said = f"{self.requests} requests for {self.answers} answers are under way, and this one asks for {answers}"
            raise Refused(429, f"{most}: {said}; ask again in a while", code="too_many_requests")
        self.requests, self.answers = self.requests + 1, self.answers + answers
        inside = [answers]

        def leave() -> None:
            if inside:
                self.requests, self.answers = self.requests - 1, self.answers - inside.pop()

        return leave
