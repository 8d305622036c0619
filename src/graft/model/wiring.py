"""Wiring: the slots of a model's modules and its doorway, made where a site first needs them, attached and detached together."""

from collections.abc import Iterable
from types import MethodType
from typing import Any

from graft.errors import AdapterError
from graft.model import slots
from graft.model.fold import tied_to
from graft.model.routing import Cell, Routing
from graft.model.slots import Slot
from graft.model.twin import shared
from graft.model.virtual_tokens import Doorway
from graft.site import Site


class Wiring:
    """What hangs in one model."""

    def __init__(self, model: Any) -> None:
        if any(name.rsplit(".", 1)[-1] == "graft" for name, _ in model.named_modules()):
            raise AdapterError("this model is adapted already: detach() the Adapted first, or add() another adapter to it")
        self.model = model
        self.routing = Routing()
        self.slots: dict[str, Slot] = {}
        self.modules: dict[str, Any] = {}  # of slots, found once: what happens before a batch is to be quick
        self.doorway: Doorway | None = None
        self.attached = self.bypassed = False
        self.trained = {name: value.requires_grad for name, value in model.named_parameters()}

    def slot(self, path: str) -> Slot:
        """The slot of a module; made (and attached, if the rest is) when first needed."""
        if path not in self.slots:
            module = self.model.get_submodule(path)
            self.bypass(False)
            self.slots[path] = Slot(module, self.routing)
            self.slots[path].ends = module is self.model.get_output_embeddings()
            if self.attached:
                slots.attach(module, self.slots[path])
        return self.slots[path]

    def slot_for(self, site: Site, *, borrows: bool) -> Slot:
        """The slot of a site, wired to the module whose input the site reads if its form borrows that."""
        return self.borrower(site.path, [site.reads] if borrows and site.reads else [])

    def borrower(self, path: str, lenders: Iterable[str]) -> Slot:
        """The slot of a module, wired to those whose inputs it reads."""
        made = self.slot(path)
        for name in lenders:
            if name not in made.cells:
                lender = self.slot(name)
                lender.lends = lender.lends or Cell()
                made.cells[name] = lender.lends
        return made

    def door(self) -> Doorway:
        """The root's doorway for virtual tokens; made (and attached, if the rest is) when first needed."""
        if self.doorway is None:
            self.doorway = Doorway(self.model, self.routing)
            if self.attached:
                self.doorway.attach(self.model)
        return self.doorway

    def tied(self, path: str) -> list[str]:
        """The modules that are tied to this one: later in the model, with this one's own parameter as their weight."""
        return tied_to(self.model, path)

    def follow(self) -> None:
        """Modules tied to a replaced one and not replaced themselves run with its twin's parameters: a tie stays a tie."""
        for path, slot in list(self.slots.items()):
            if not hasattr(slot, "twin"):
                continue
            for name in self.tied(path):
                if not hasattr(self.slot(name), "twin"):
                    self.slot(name).twin = shared(self.model.get_submodule(name), slot.twin)

    def attach(self) -> None:
        """Freeze the base and run every module that has a slot through it."""
        for value in self.model.parameters():
            value.requires_grad_(False)
        for path, slot in self.slots.items():
            slots.attach(self.model.get_submodule(path), slot)
        if self.doorway is not None:
            self.doorway.attach(self.model)
        self.attached = True

    def bypass(self, off: bool) -> None:
        """Run every module as if nothing were attached, or (`off` is False) through its slot again: for batches of the bare base alone."""
        if off != self.bypassed:
            for path in self.slots:
                self.modules[path] = self.modules.get(path) or self.model.get_submodule(path)
                module = self.modules[path]
                module.__dict__["forward"] = module.graft_inner if off else MethodType(slots.overridden, module)
            self.bypassed = off

    def detach(self) -> None:
        """Take everything off: the model is what it was before, to the bit."""
        self.bypass(False)
        for path in self.slots:
            slots.detach(self.model.get_submodule(path))
        if self.doorway is not None:
            self.doorway.detach(self.model)
        for name, value in self.model.named_parameters():
            value.requires_grad_(self.trained[name])
        self.attached = False
