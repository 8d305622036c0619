"""What happened: requests by kind and how they ended, and the two lists that must stay empty."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field


@dataclass
class Ledger:
    """`kinds[kind][ending]` counts; `wrong`: answers that are not the oracle's; `unexpected`: endings that nobody asked for."""

    kinds: dict = field(default_factory=lambda: defaultdict(Counter))
    wrong: list = field(default_factory=list)
    unexpected: list = field(default_factory=list)
    checked: int = 0
    redrawn: int = 0
    redrawn_otherwise: int = 0
    seconds: list = field(default_factory=list)
    first: list = field(default_factory=list)

    def end(self, kind, reply, allowed, *, what="", spoken=True):
        """Note how a request ended: a status that is not allowed is unexpected, as is a refusal without a sentence. Whether it was 200."""
        self.kinds[kind][str(reply.status) if reply.status else "closed"] += 1
        if reply.status not in allowed or (spoken and reply.status >= 400 and not reply.sentence):
            said = reply.sentence or reply.body[:200].decode("utf-8", "replace")
            self.note(kind, reply.status, what=what, said=said)
        elif reply.status == 200 and reply.sentence:
            self.note(kind, "error in the stream", what=what, said=reply.sentence)
        return reply.status == 200 and not reply.sentence

    def note(self, kind, status, *, what="", said=""):
        """Note what nobody asked for."""
        self.unexpected.append({"kind": kind, "status": status, "what": str(what)[:300], "said": said[:500]})

    def check(self, kind, case, text, rights):
        """Compare an answer with what may be right."""
        self.checked += 1
        if text not in rights:
            self.wrong.append({"kind": kind, "model": case.model, "prompt": case.words[:200], "answered": text, "right": list(rights)})
