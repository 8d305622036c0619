"""Who may start next: start-time fair queueing between adapters, in tokens.

The bare base and each adapter are a flow; a request costs its prompt, virtual and most new tokens, and what it did not use is given back.

    a flow's tag    how much it was given: + cost with each request that starts, - what was not used when it ends
    next            the first request of the flow with the least tag
    a flow that had nothing waiting starts at the least tag of those that have

This is start-time fair queueing (Goyal, Vin and Cheng 1996, https://doi.org/10.1145/248156.248171) in tokens, with that lift of idle flows
(Sheng et al. 2024, https://arxiv.org/abs/2401.00588). What any two flows that wait all the time were given differs at any moment, with l
the greatest cost of a request of each, by at most

    l_f + l_m                            where both find a slot (Theorem 1 of the former)
    l_f + l_m + quantum                  where slots are fewer than adapters

since with too few slots to bring an adapter to the device costs waiting until another's requests have ended: so one that holds a slot
may go on until its tag is `quantum` past that of the first flow that finds no slot. Then it waits, its requests end, and the slot is the
other's. The bare base needs no slot and passes those that wait for one, as it takes nothing from them.
"""

import heapq
import itertools
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from graft.errors import Overloaded
from graft.serve.shelf import Entry
from graft.serve.ticket import Ticket

FLOWS = 4096  # past so many flows those with nothing to say are forgotten


@dataclass(frozen=True)
class Queueing:
    """At most `waiting` answers wait, and `each` of one adapter (None: any number); `quantum`: tokens, see above."""

    waiting: int | None = None
    each: int | None = None
    quantum: int = 2048


class Start(Enum):
    """What became of a request whose turn it was: it left the queue, or stays: for want of a slot, or until the next batch."""

    GONE = "gone"
    FREE = "free"  # it left the queue, and cost nothing
    STUCK = "stuck"
    LATER = "later"


class Flow:
    """One adapter's requests in the order they came."""

    def __init__(self) -> None:
        self.tag = 0
        self.tickets: deque[Ticket] = deque()


Turn = tuple[int, int, Flow]


class Fair:
    """All that wait. `add`, `waiting` and `refund` are for any thread, the rest for the engine's."""

    def __init__(self, queueing: Queueing) -> None:
        self.queueing, self.lock = queueing, threading.Lock()
        self.flows: dict[str | None, Flow] = {}
        self.count, self.latest = 0, 0  # answers that wait; the greatest tag at which one started
        self.numbers = itertools.count()

    def add(self, tickets: Sequence[Ticket]) -> None:
        """Let one adapter's requests wait. Raises Overloaded where more would wait than may, and none of them does then."""
        most, each = self.queueing.waiting, self.queueing.each
        with self.lock:
            flow = self.flows.get(tickets[0].named) or Flow()
            if most is not None and self.count + len(tickets) > most:
                raise Overloaded(f"{self.count} requests wait here, and at most {most} may: try again later")
            if each is not None and len(flow.tickets) + len(tickets) > each:
                raise Overloaded(f"{len(flow.tickets)} requests wait for {tickets[0].what}, and at most {each} may: try again later")
            if not flow.tickets:
                flow.tag = max(flow.tag, self.least())
            if len(self.flows) > FLOWS:
                least = self.least()
                self.flows = {name: one for name, one in self.flows.items() if one.tickets or one.tag > least}
            self.flows[tickets[0].named] = flow
            flow.tickets.extend(tickets)
            self.count += len(tickets)

    def least(self) -> int:
        """The least tag of the flows that wait; where none does, the greatest at which a request started."""
        return min((flow.tag for flow in self.flows.values() if flow.tickets), default=self.latest)

    def waiting(self) -> list[Ticket]:
        """All that wait."""
        with self.lock:
            return [ticket for flow in self.flows.values() for ticket in flow.tickets]

    def refund(self, ticket: Ticket, tokens: int) -> None:
        """A request that started did not use so many tokens."""
        with self.lock:
            if ticket.named in self.flows:
                self.flows[ticket.named].tag -= tokens

    def sweep(self) -> list[Ticket]:
        """Take out all that were ended where they waited."""
        with self.lock:
            gone = [ticket for flow in self.flows.values() for ticket in flow.tickets if ticket.closed]
            for flow in self.flows.values() if gone else ():
                flow.tickets = deque(ticket for ticket in flow.tickets if not ticket.closed)
            self.count -= len(gone)
            return gone

    def admit(self, full: Callable[[], bool], start: Callable[[Ticket, Callable[[Entry], bool]], Start]) -> None:
        """Let requests start until it is `full`. `start` is told which adapters may not be moved out of their slots for this one."""
        hot, cold = self.turns()
        stuck: int | None = None
        while (hot or cold) and not full():
            tag, _, flow = heapq.heappop(hot if not cold or (hot and hot[0] < cold[0]) else cold)
            ticket = flow.tickets[0]
            if stuck is not None and (not ready(flow) or (ticket.entry is not None and tag > stuck + self.queueing.quantum)):
                continue
            found = start(ticket, self.keeps(tag))
            if found is Start.STUCK:
                stuck, cold = tag, []  # nor will those behind it find a slot
            elif found is not Start.LATER:
                self.leave(flow, ticket if found is Start.GONE else None)
                if flow.tickets:
                    heapq.heappush(hot if ready(flow) else cold, (flow.tag, next(self.numbers), flow))

    def turns(self) -> tuple[list[Turn], list[Turn]]:
        """The flows that wait and could start at once, and those that need a slot first; each a heap by tags."""
        with self.lock:
            waiting = [(flow.tag, next(self.numbers), flow) for flow in self.flows.values() if flow.tickets]
        hot, cold = [turn for turn in waiting if ready(turn[2])], [turn for turn in waiting if not ready(turn[2])]
        heapq.heapify(hot)
        heapq.heapify(cold)
        return hot, cold

    def keeps(self, tag: int) -> Callable[[Entry], bool]:
        """Whether an adapter keeps its slot from a flow with this tag, having requests that may still start."""

        def kept(entry: Entry) -> bool:
            flow = self.flows.get(entry.name)
            return flow is not None and entry.waiting > 0 and flow.tag <= tag + self.queueing.quantum

        return kept

    def leave(self, flow: Flow, paid: Ticket | None) -> None:
        """The first of a flow is no longer waiting; it is charged if it `paid`."""
        with self.lock:
            flow.tickets.popleft()
            self.count -= 1
            if paid is not None:
                self.latest = max(self.latest, flow.tag)
                flow.tag += paid.cost

    def clear(self) -> list[Ticket]:
        """Let none wait."""
        with self.lock:
            left = [ticket for flow in self.flows.values() for ticket in flow.tickets]
            self.flows, self.count = {}, 0
            return left


def ready(flow: Flow) -> bool:
    """Whether a flow's first request needs no slot, or has it."""
    entry = flow.tickets[0].entry
    return entry is None or entry.slot is not None
