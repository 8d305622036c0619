"""Routes: several adapters of any method resident in one model, and the slot that each row wants.

What is in the slots is a matter of `Residents`; virtual tokens are kept as keys and values (a prompt's are computed once, under its own
adapter's other parts). Slot 0 is the bare base, slot 1 the live adapter, filled again when it has been trained.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from graft.adapter import Adapter
from graft.errors import AdapterError
from graft.forms import VirtualTokens
from graft.model.residents import Residents
from graft.model.virtual_tokens import side_by_side
from graft.model.wiring import Wiring

LIVE, LIVE_SLOT = "live", 1


class Routes:
    """The adapters loaded beside the live one, by name."""

    def __init__(self, wiring: Wiring) -> None:
        self.wiring, self.model = wiring, wiring.model
        self.residents = Residents(wiring)
        self.loaded: dict[str, Adapter] = {}  # as they were given: what a merge of one needs
        self.numbers: dict[str, int] = {LIVE: LIVE_SLOT}  # slots by name
        self.rows: list[str | None] | None = None  # as they are routed now
        self.state: object = None

    @property
    def names(self) -> list[str]:
        """The names that rows can be routed to."""
        return list(self.numbers)

    @torch.inference_mode(False)
    @torch.no_grad()
    def add(self, name: str, adapter: Adapter, *, replace: bool = False, what: str = "the adapter") -> None:
        """Load an adapter under a name. Raises AdapterError, and changes nothing, on a name taken or a tensor that does not fit."""
        if name == LIVE or (name in self.numbers and not replace):
            raise AdapterError(f"adapter name {name!r} is taken: choose another")
        self.residents.check(adapter)
        taken = set(self.numbers.values())
        number = self.numbers.get(name) or next(n for n in range(LIVE_SLOT + 1, len(taken) + 2) if n not in taken)
        self.fill(number, adapter)
        self.residents.say_inert(adapter, what)
        self.numbers[name], self.loaded[name] = number, adapter
        if self.rows is not None and name in self.rows:
            self.lay_out()

    @torch.inference_mode(False)
    @torch.no_grad()
    def remove(self, name: str) -> None:
        """Take an adapter out again; its room is there for others. Raises AdapterError where it is not loaded, or routed to now."""
        if name == LIVE or name not in self.numbers:
            raise AdapterError(f"no adapter called {name!r} was added: there are {', '.join(self.names[1:]) or 'none'}")
        if self.rows is not None and name in self.rows:
            raise AdapterError(f"rows are routed to {name!r} now: route others first, or route(None)")
        self.empty(self.numbers.pop(name))
        del self.loaded[name]

    @torch.inference_mode(False)
    @torch.no_grad()
    def route(self, rows: Sequence[str | None] | None, live: Callable[[], Adapter]) -> None:
        """Give each row its adapter; `live` gives the live one as it is now. Raises AdapterError on a name that is not loaded."""
        routing = self.wiring.routing
        if rows is None:
            self.rows, routing.slots, routing.virtual = None, None, (None, None, 1)
            return
        if not rows:
            raise AdapterError("route takes a name for each row, and has none: route(None) gives every row the live adapter")
        for name in rows:
            if name is not None and name not in self.numbers:
                raise AdapterError(f"no adapter is called {name!r}: there are {', '.join(self.names)}")
        state = tuple((value.data_ptr(), value._version) for value in self.model.parameters() if value.requires_grad)
        if LIVE_SLOT not in self.residents.touched or (LIVE in rows and (self.state != state or routing.stale)):
            adapter = live()
            self.residents.check(adapter)
            self.fill(LIVE_SLOT, adapter)
            self.state, routing.stale = state, False
        self.rows = list(rows)
        self.lay_out()

    def lay_out(self) -> None:
        """Leave the rows' slots, and their keys and values side by side, where the forward finds them."""
        routing, door = self.wiring.routing, self.wiring.doorway
        slots = [0 if name is None else self.numbers[name] for name in self.rows or ()]
        routing.slots = torch.tensor(slots, device=self.model.device)
        routing.virtual = (None, None, 1) if door is None else side_by_side([door.routed.get(slot) for slot in slots])

    def fill(self, number: int, adapter: Adapter) -> None:
        """Compute an adapter's forms and put them into a slot in place of what is there. Raises AdapterError for a prompt on an encoder."""
        prepared = self.residents.prepare(adapter)
        virtual = prepared.virtual
        if virtual is not None and virtual.embeds is not None and not self.wiring.door().causal:
            raise AdapterError("a prompt on an encoder cannot share a batch: run it as the live adapter, alone")
        self.empty(number)
        self.residents.put(number, prepared)
        if virtual is not None:
            kv = virtual.kv if virtual.embeds is None else self.prompt(number, virtual.embeds)
            if kv is not None:
                self.wiring.door().routed[number] = VirtualTokens(kv=kv.transpose(2, 3), shift=virtual.shift)

    def empty(self, number: int) -> None:
        """Take everything out of a slot."""
        self.residents.empty(number)
        if self.wiring.doorway is not None:
            self.wiring.doorway.routed.pop(number, None)

    def prompt(self, number: int, embeds: Tensor) -> Tensor:
        """The keys and values of a prompt [n, d] under slot `number`: [layers, 2, n, heads, head dim]."""
        routing = self.wiring.routing
        before, routing.slots = routing.slots, torch.tensor([number], device=self.model.device)
        try:
            return self.wiring.door().computed(self.model, embeds)
        finally:
            routing.slots = before
