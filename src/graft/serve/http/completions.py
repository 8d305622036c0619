"""POST /v1/completions: answers to prompts, and with `echo` and `logprobs` the log-probabilities of the prompts themselves.

Evaluation harnesses score texts so: `max_tokens` 0 or 1, `echo`, `logprobs`. A prompt's log-probabilities come from one forward over it.
"""

import time
import uuid
from collections.abc import AsyncIterator
from itertools import accumulate
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from graft.serve.answers import Token, Usage
from graft.serve.http.asking import Asking, Part
from graft.serve.http.desk import Desk, used
from graft.serve.http.replies import TextChoice, TextCompletion, TextLogprobs
from graft.serve.http.schemas import CompletionRequest
from graft.serve.http.spelling import finite
from graft.serve.http.stream import answered, conducted, described
from graft.serve.http.wishes import sampling_of, voiced
from graft.serve.scoring import Scored

DEFAULT_TOKENS = 16
Told = tuple[int, float | None, tuple[tuple[int, float], ...]]  # a token, its log-probability, the likeliest in its place


def routes(desk: Desk) -> APIRouter:
    """The endpoint."""
    router = APIRouter()

    @router.post("/v1/completions", responses=described(TextCompletion), response_model=TextCompletion, tags=["answers"])
    async def create_completion(body: CompletionRequest, request: Request) -> Any:
        """Answer prompts, or score them."""
        return await answered(request, Completion(desk, body).response(request.state.facts))

    return router


class Completion:
    """One request whose prompts are answered."""

    def __init__(self, desk: Desk, body: CompletionRequest) -> None:
        self.desk, self.body = desk, body
        self.id, self.created = f"cmpl-{uuid.uuid4().hex}", int(time.time())
        self.sampling = sampling_of(body, body.max_tokens, body.logprobs, DEFAULT_TOKENS)
        self.generates = body.max_tokens != 0
        self.ids: list[list[int]] = []
        self.scores: list[Scored] = []
        self.offsets: dict[tuple[int, int], int] = {}

    async def response(self, facts: dict[str, Any]) -> Response:
        """The answers, or a stream of them that has begun."""
        asking = self.desk.asking(self.body.model, len(self.body.prompts) * self.sampling.n, facts)
        events = self.events(asking) if self.body.stream else None
        return await conducted(asking, self.begin(asking), lambda: self.completion(asking), events)

    async def begin(self, asking: Asking) -> None:
        """Read the prompts as ids, score them where that is asked for, and ask for answers."""

        def read() -> list[list[int]]:
            self.desk.ready(asking.adapter)
            self.sampling = voiced(self.sampling, self.body, self.desk.engine.voice(asking.adapter).sampling)
            return [self.desk.prompts.ids(one) for one in self.body.prompts]

        self.ids = await asking.thread(read)
        if self.body.echo and self.body.logprobs is not None:
            self.scores = await asking.score(self.ids, self.body.logprobs)
        if self.generates:
            await asking.submit(self.ids, self.sampling)

    def usage(self, asking: Asking) -> Usage:
        """What was spent; prompts of which nothing was asked count all the same."""
        return asking.usage() if asking.handles else Usage(sum(len(ids) for ids in self.ids), 0, 0)

    def completion(self, asking: Asking) -> TextCompletion:
        """All answers."""
        choices = []
        for prompt in range(len(self.ids)):
            for index in range(self.sampling.n):
                text, told, reason = self.echoed(prompt) if self.body.echo else "", self.echoed_told(prompt), "length"
                if self.generates:
                    answer = asking.handles[prompt].answers[index]
                    text, told, reason = text + answer.text, told + [told_of(one) for one in answer.tokens], answer.reason
                choices.append(self.choice(prompt, index, text, told, reason))
        return self.reply(choices, self.usage(asking))

    def echoed(self, prompt: int) -> str:
        """A prompt's text."""
        given = self.body.prompts[prompt]
        return given if isinstance(given, str) else self.desk.spelling.decoded(given)

    def echoed_told(self, prompt: int) -> list[Told]:
        """A prompt's tokens, where they were scored."""
        if not self.scores:
            return []
        one = self.scores[prompt]
        return list(zip(one.ids, one.logprobs, one.alternatives, strict=True))

    def choice(self, prompt: int, index: int, text: str, told: list[Told], reason: str) -> TextChoice:
        """An answer, or what is new of it."""
        number = prompt * self.sampling.n + index
        logprobs = None if self.body.logprobs is None else self.logprobs(told, (prompt, index))
        return TextChoice(index=number, text=text, logprobs=logprobs, finish_reason=reason or None)  # type: ignore[arg-type]

    def logprobs(self, told: list[Told], which: tuple[int, int]) -> TextLogprobs:
        """Tokens and their log-probabilities. Of tokens that are called alike the likeliest is told."""
        spelling = self.desk.spelling
        names = [spelling.name(number) for number, _, _ in told]
        places = list(accumulate((len(spelling.text(number)) for number, _, _ in told), initial=self.offsets.get(which, 0)))
        self.offsets[which] = places[-1]
        tops: list[dict[str, float] | None] = []
        for number, own, others in told:
            top = {spelling.name(one): finite(value) for one, value in reversed(others)}
            if own is not None:
                top.setdefault(spelling.name(number), finite(own))
            tops.append(None if own is None else top)
        owns = [None if own is None else finite(own) for _, own, _ in told]
        return TextLogprobs(tokens=names, token_logprobs=owns, top_logprobs=tops, text_offset=places[:-1])

    def reply(self, choices: list[TextChoice], usage: Usage | None) -> TextCompletion:
        """Choices, as they are told."""
        spent = None if usage is None else used(usage)
        return TextCompletion(id=self.id, created=self.created, model=self.body.model, choices=choices, usage=spent)

    async def events(self, asking: Asking) -> AsyncIterator[str]:
        """The events of a stream."""
        for prompt in range(len(self.ids) if self.body.echo or not self.generates else 0):
            for index in range(self.sampling.n):
                text, reason = self.echoed(prompt) if self.body.echo else "", "" if self.generates else "length"
                yield self.event(asking, [self.choice(prompt, index, text, self.echoed_told(prompt), reason)])
        async for part in asking.parts() if self.generates else nothing():
            if part.text or part.reason or (part.token is not None and self.sampling.logprobs is not None):
                told = [] if part.token is None else [told_of(part.token)]
                yield self.event(asking, [self.choice(part.prompt, part.index, part.text, told, part.reason)])
        if self.body.usage_at_end:
            yield self.event(asking, [])

    def event(self, asking: Asking, choices: list[TextChoice]) -> str:
        """One event; without a choice the last, with the usage."""
        usage = self.usage(asking) if not choices or self.body.usage_always else None
        return f"data: {self.reply(choices, usage).model_dump_json()}\n\n"


def told_of(token: Token) -> Told:
    """A new token, as scores tell those of a prompt."""
    return token.id, token.logprob, token.alternatives


async def nothing() -> AsyncIterator[Part]:
    """No parts."""
    for part in list[Part]():
        yield part
