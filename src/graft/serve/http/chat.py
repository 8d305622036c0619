"""POST /v1/chat/completions."""

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from graft.serve.answers import Token
from graft.serve.http.asking import Asking, Part
from graft.serve.http.desk import Desk, used
from graft.serve.http.replies import ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatLogprobs, Delta, Reply, ToldToken, TopToken
from graft.serve.http.schemas import ChatRequest
from graft.serve.http.spelling import Spelling, finite
from graft.serve.http.stream import answered, conducted, described
from graft.serve.http.wishes import sampling_of, voiced


def routes(desk: Desk) -> APIRouter:
    """The endpoint."""
    router = APIRouter()

    @router.post("/v1/chat/completions", responses=described(ChatChunk), response_model=ChatCompletion, tags=["answers"])
    async def create_chat_completion(body: ChatRequest, request: Request) -> Any:
        """Answer a chat."""
        return await answered(request, Chat(desk, body).response(request.state.facts))

    return router


class Chat:
    """One chat that is answered."""

    def __init__(self, desk: Desk, body: ChatRequest) -> None:
        self.desk, self.body = desk, body
        self.id, self.created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self.sampling = sampling_of(body, body.max_completion_tokens or body.max_tokens, body.told, desk.settings.limits.new_tokens)

    async def response(self, facts: dict[str, Any]) -> Response:
        """The answer, or a stream of it that has begun."""
        asking = self.desk.asking(self.body.model, self.sampling.n, facts)
        events = self.events(asking) if self.body.stream else None
        return await conducted(asking, self.begin(asking), lambda: self.completion(asking), events)

    async def begin(self, asking: Asking) -> None:
        """Write the chat as ids, and ask the engine."""

        def written() -> list[int]:
            self.desk.ready(asking.adapter)
            self.sampling = voiced(self.sampling, self.body, self.desk.engine.voice(asking.adapter).sampling)
            return self.desk.prompts.chat(self.body.messages, asking.adapter)

        await asking.submit([await asking.thread(written)], self.sampling)

    def completion(self, asking: Asking) -> ChatCompletion:
        """The whole answer."""
        choices = [
            ChatChoice(index=index, message=Reply(content=one.text), logprobs=self.told(one.tokens), finish_reason=one.reason)  # type: ignore[arg-type]
            for index, one in enumerate(asking.handles[0].answers)
        ]
        return ChatCompletion(id=self.id, created=self.created, model=self.body.model, choices=choices, usage=used(asking.usage()))

    def told(self, tokens: list[Token]) -> ChatLogprobs | None:
        """The log-probabilities of tokens, where they were asked for."""
        if self.sampling.logprobs is None:
            return None
        return ChatLogprobs(content=[told(one, self.desk.spelling) for one in tokens])

    async def events(self, asking: Asking) -> AsyncIterator[str]:
        """The events of a stream."""
        for index in range(self.sampling.n):
            yield self.event(asking, ChatChunkChoice(index=index, delta=Delta(role="assistant", content="")))
        async for part in asking.parts():
            if part.text or part.reason or (part.token is not None and self.sampling.logprobs is not None):
                yield self.event(asking, self.choice(part))
        if self.body.usage_at_end:
            yield self.event(asking, None)

    def choice(self, part: Part) -> ChatChunkChoice:
        """What is new, as an event tells it."""
        return ChatChunkChoice(
            index=part.index,
            delta=Delta(content=part.text) if part.text or part.token is not None else Delta(),
            logprobs=None if part.token is None else self.told([part.token]),
            finish_reason=part.reason or None,  # type: ignore[arg-type]
        )

    def event(self, asking: Asking, choice: ChatChunkChoice | None) -> str:
        """One event; without a choice the last, with the usage."""
        usage = used(asking.usage()) if choice is None or self.body.usage_always else None
        choices = [] if choice is None else [choice]
        chunk = ChatChunk(id=self.id, created=self.created, model=self.body.model, choices=choices, usage=usage)
        return f"data: {chunk.model_dump_json()}\n\n"


def told(token: Token, spelling: Spelling) -> ToldToken:
    """A token with its log-probability and the likeliest in its place."""
    others = [TopToken(token=spelling.name(one), logprob=finite(value), bytes=spelling.bytes(one)) for one, value in token.alternatives]
    own = finite(0.0 if token.logprob is None else token.logprob)
    return ToldToken(token=spelling.name(token.id), logprob=own, bytes=spelling.bytes(token.id), top_logprobs=others)
