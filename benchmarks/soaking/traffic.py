"""Traffic: honest requests of every kind, checked where the oracle knows the answer, managing of adapters, and hostile requests."""

import asyncio
import os
import shutil
import time

from soaking import hostile
from soaking.hostile import CHAT, COMPLETIONS, admin
from soaking.oracle import NEW, PROMPTS
from soaking.place import GUESTS, METHODS

KINDS = {
    "whole": 24, "stream": 24, "drawn": 12, "several": 5, "scored": 5, "left in the middle": 10, "left at once": 4, "swapped": 6,
    "hostile": 22, "guest": 5, "reload": 2, "swap": 1, "look": 3,
}  # fmt: skip
NO_END = " (no end)"
LOOKS = ("/health", "/ready", "/metrics", "/v1/models", "/", "/playground/page.js", "/openapi.json")


class Traffic:
    """Sends requests of random kinds; what came of them is in the ledger."""

    def __init__(self, client, cases, place, ledger, rng):
        self.client, self.cases, self.place, self.ledger, self.rng = client, cases, place, ledger, rng
        self.attacks = hostile.attacks(client)
        self.guests = list(GUESTS)
        self.texts = {}  # what was drawn for (model, prompt, seed)
        self.turns = [["swap-a", 0.0, 0.0]]  # versions of "swap", when its loading began and when it was there
        self.swapping = asyncio.Lock()
        self.busy = False  # a burst is on: 429 may come

    async def one(self):
        """A request of a random kind; what breaks here is unexpected too."""
        (kind,) = self.rng.choices(list(KINDS), list(KINDS.values()))
        try:
            await getattr(self, kind.replace(" ", "_"))(kind)
        except Exception as error:
            self.ledger.note(kind, type(error).__name__, what=error)

    def case(self):
        """One of the base's or of an adapter that stays."""
        return self.rng.choice(self.cases[self.rng.choice(("base", *METHODS))])

    def body(self, case, **fields):
        """(path, body) of a request for a case."""
        if case.chat:
            return CHAT, {"model": case.model, "messages": [{"role": "user", "content": case.words}], "max_tokens": NEW} | fields
        return COMPLETIONS, {"model": case.model, "prompt": case.words, "max_tokens": NEW} | {"temperature": 0} | fields

    def allowed(self):
        """The statuses that an honest request may end with."""
        return (200, 429) if self.busy else (200,)

    async def whole(self, kind):
        """A whole answer, greedy."""
        await self.checked(kind, self.case(), stream=False)

    async def stream(self, kind):
        """A streamed answer, greedy."""
        await self.checked(kind, self.case(), stream=True)

    async def checked(self, kind, case, *, stream, rights=None, allowed=lambda reply: ()):
        """Ask and compare; whether it was answered. `allowed`: further statuses that a reply may have, once it is there."""
        path, body = self.body(case, temperature=0, **({"stream": True} if stream else {}))
        reply = await self.client.ask(path, body)
        ok = self.ledger.end(kind, reply, (*self.allowed(), *allowed(reply)), what=case.model)
        if ok:
            self.ledger.seconds.append(reply.seconds)
            self.ledger.first += [reply.first] if reply.first else []
            self.ledger.check(kind, case, streamed(reply) if stream else text_of(reply), rights() if rights else (case.answer,))
        return ok

    async def drawn(self, kind):
        """A seed draws the same whenever it is asked, whatever runs beside it."""
        case, seed = self.case(), self.rng.randrange(3)
        path, body = self.body(case, temperature=0.9, top_p=0.95, top_k=50, seed=seed)
        reply = await self.client.ask(path, body)
        if self.ledger.end(kind, reply, self.allowed(), what=case.model):
            text = text_of(reply)
            self.ledger.redrawn += (case, seed) in self.texts
            self.ledger.redrawn_otherwise += self.texts.setdefault((case, seed), text) != text

    async def several(self, kind):
        """Three answers at once, with log-probabilities; the prompts of two cases in one request."""
        one, two = (self.case() for _ in range(2))
        path, body = COMPLETIONS, {"model": one.model, "prompt": [one.words, two.words], "n": 2, "logprobs": 3, "max_tokens": 6}
        reply = await self.client.ask(path, body | {"temperature": 0.8})
        if self.ledger.end(kind, reply, self.allowed(), what=one.model) and len(reply.json()["choices"]) != 4:
            self.ledger.note(kind, "not four answers", what=one.model)

    async def scored(self, kind):
        """A prompt's own log-probabilities: the oracle's answer after its prompt is the likeliest at each place."""
        case = next(one for one in iter(self.case, None) if not one.chat)
        body = {"model": case.model, "prompt": f"{case.words} {case.answer}", "echo": True, "logprobs": 1, "max_tokens": 0}
        reply = await self.client.ask(COMPLETIONS, body)
        if self.ledger.end(kind, reply, self.allowed(), what=case.model):
            told = reply.json()["choices"][0]["logprobs"]
            start = len(case.words.split())
            likeliest = [max(place, key=place.get).strip() for place in told["top_logprobs"][start:]]
            self.ledger.check(kind, case, " ".join(likeliest), (case.answer,))

    async def left_in_the_middle(self, kind):
        """Hang up after some events."""
        path, body = self.body(self.case(), stream=True, max_tokens=200, ignore_eos=True)
        reply = await self.client.ask(path, body, leave_after=self.rng.randint(1, 30))
        self.ledger.end(kind, reply, self.allowed(), what=body["model"])

    async def left_at_once(self, kind):
        """Hang up before anything came."""
        path, body = self.body(self.case(), stream=self.rng.random() < 0.5, max_tokens=200, ignore_eos=True)
        self.ledger.end(kind, await self.client.ask(path, body, leave_after=0), (0,), what=body["model"])

    async def long(self, kind):
        """A long streamed answer, to its end."""
        path, body = self.body(self.case(), stream=True, max_tokens=300, ignore_eos=True)
        reply = await self.client.ask(path, body)
        if self.ledger.end(kind, reply, (200,), what=body["model"]) and streamed(reply).endswith(NO_END):
            self.ledger.note(kind, "a stream without an end", what=body["model"])

    async def hostile(self, kind):
        """An attack."""
        name = self.rng.choice(list(self.attacks))
        act, statuses = self.attacks[name]
        self.ledger.end(f"hostile: {name}", await act(self.rng), statuses, what=name, spoken=name not in hostile.UNSPOKEN)

    async def look(self, kind):
        """What a monitor reads."""
        path = self.rng.choice(LOOKS)
        self.ledger.end(kind, await self.client.ask(path, None, method="GET"), (200,), what=path)

    async def guest(self, kind):
        """An adapter that comes, answers and goes, with requests under way or without."""
        if not self.guests:
            return
        name = self.guests.pop()
        try:
            loaded = await admin(self.client, "PUT", name)
            if self.ledger.end("load", loaded, (200,), what=name):
                asking = [self.checked(kind, self.rng.choice(self.cases[name]), stream=self.rng.random() < 0.5) for _ in range(3)]
                await asyncio.gather(*asking)
                self.ledger.end("unload", await admin(self.client, "DELETE", name), (200,), what=name)
                gone = await self.client.ask(*self.body(self.cases[name][0]))
                self.ledger.end("asked after unloading", gone, (404,), what=name)
        finally:
            self.guests.append(name)

    async def reload(self, kind):
        """An adapter that stays is read again while it answers."""
        name = self.rng.choice(list(METHODS))
        self.ledger.end(kind, await admin(self.client, "PUT", name), (200,), what=name)

    async def swap(self, kind):
        """Another adapter takes the name "swap"."""
        async with self.swapping:
            version = "swap-b" if self.turns[-1][0] == "swap-a" else "swap-a"
            turn = [version, time.monotonic(), float("inf")]
            self.turns.append(turn)
            exchange(self.place, version)
            self.ledger.end(kind, await admin(self.client, "PUT", "swap"), (200,), what=version)
            turn[2] = time.monotonic()

    async def swapped(self, kind):
        """An answer of "swap" is that of a version which was there while it was asked."""
        number, began = self.rng.randrange(PROMPTS), time.monotonic()

        def rights():
            after = [turn[2] for turn in self.turns[1:]] + [float("inf")]  # a version is there until the next one is
            met = {turn[0] for turn, until in zip(self.turns, after, strict=True) if until >= began}
            return tuple(self.cases["swap"][version][number].answer for version in met)

        def changing(reply):
            """Between the exchange of its files and its loading an adapter cannot be read again: that is refused, by name."""
            met = any(turn[2] >= began for turn in self.turns[1:])
            return (400,) if met and "is not what was loaded" in reply.sentence else ()

        case, stream = self.cases["swap"]["swap-a"][number], self.rng.random() < 0.5
        await self.checked(kind, case, stream=stream, rights=rights, allowed=changing)


def exchange(place, version):
    """Put a version's files where "swap" is read from: in a moment, as a deployment does."""
    new, old, here = place / "incoming", place / "outgoing", place / "adapters" / "swap"
    shutil.copytree(place / "versions" / version, new)
    os.replace(here, old)
    os.replace(new, here)
    shutil.rmtree(old)


def text_of(reply):
    """The first answer's text."""
    choice = reply.json()["choices"][0]
    return (choice["message"]["content"] if "message" in choice else choice["text"]).strip()


def streamed(reply):
    """A stream's text, to its end; what a stream without an end had is marked."""
    choices = [event["choices"][0] for event in reply.events if event.get("choices")]
    text = "".join((choice["delta"].get("content") or "") if "delta" in choice else choice["text"] for choice in choices)
    return text.strip() + ("" if any(choice.get("finish_reason") for choice in choices) else NO_END)
