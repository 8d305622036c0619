"""Pack: the affine forms of many adapters at one module, run together on a batch whose rows want different ones.

    y' = c[s] * y + (act(x' A^T + a) * (of == s)) B^T + b[s]          x' = i[s] * x, or y where the pack reads y

`s` is the slot of each row (or of each token); slot 0 is the bare base. The columns of A and B of all adapters stand side by side,
each tagged with its slot in `of`; the mask comes after the activation, since act(0) need not be 0. Everything that varies between
adapters is a tensor with room to spare, so that loading another one seldom changes a shape, and routing and scales never do.
"""

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from graft.errors import AdapterError
from graft.forms import ACTIVATIONS, Affine, apart, project, scaled, shifted
from graft.kernels import slots

CODES = tuple(ACTIVATIONS)
SPARE = 64  # columns: 2.3 % of the weights of a 7B model where all its linear maps have a pack
ROWS = {"c": 1.0, "i": 1.0, "b": 0.0}
"""Fields with a row a slot, and what the bare base has there."""


class Pack(nn.Module):
    """Shapes c, b [slots, out], i [slots, in], A [columns, in or out], a, of, act [columns], B [out, columns]; held [slots].

    Rows and columns are there once an adapter needs them, and half as many columns more when they no longer suffice: loading costs what
    the new adapter needs, however many are there already. Where kernels leave out columns that nobody needs there are at least as many
    more as all adapters that are expected would take if each were like it, up to SPARE: what grows makes recorded graphs stale. `held`
    says which slots have a form here.
    """

    c: Tensor | None
    i: Tensor | None
    b: Tensor | None
    A: Tensor
    a: Tensor
    B: Tensor
    of: Tensor
    act: Tensor
    held: Tensor

    def __init__(self, slots: int, like: Tensor) -> None:
        """Room for `slots` adapters (slot 0, the bare base, included), in the dtype and on the device of `like`."""
        super().__init__()
        self.spare: list[int] = []  # free columns
        self.columns: dict[int, list[int]] = {}  # by slot
        self.holders: set[int] = set()  # the slots that are held, as the host knows them
        self.found: tuple[frozenset[int], slice | Tensor] | None = None  # the columns of the slots that were in the last batch
        self.fields: frozenset[str] = frozenset()  # what any slot has ever had: what has no use is not computed
        for name in ROWS:
            self.register_buffer(name, None, persistent=False)
        for name, shape in {"A": (0, 0), "B": (0, 0), "a": (0,)}.items():
            self.register_buffer(name, like.new_zeros(shape), persistent=False)
        self.register_buffer("held", torch.zeros(slots, dtype=torch.bool, device=like.device), persistent=False)
        for name in ("of", "act"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.long, device=like.device), persistent=False)

    def load(self, slot: int, form: Affine, expected: int = 1) -> None:
        """Put a form into a slot (below the number of slots), in place of what is there; so many adapters are expected in all."""
        self.free(slot)
        self.holders.add(slot)  # from here on there is something to free
        form = apart(form)
        for name, neutral in ROWS.items():
            value = getattr(form, name)
            if value is not None:
                value = as_held(name, value, self.A.dtype)
                if getattr(self, name) is None:
                    setattr(self, name, self.A.new_full((len(self.held), len(value)), neutral, dtype=value.dtype))
                getattr(self, name)[slot] = value
        if form.A is not None and form.B is not None:
            own = self.take(slot, form.A, form.B, expected)
            self.A[own], self.B[:, own] = form.A.to(self.A.dtype), form.B.to(self.A.dtype)
            if form.a is not None:
                self.a[own] = form.a.to(self.A.dtype)
            self.act[own] = CODES.index(form.act)
        self.held[slot] = True
        self.fields |= frozenset(form.tensors()) | {form.act}

    def take(self, slot: int, A: Tensor, B: Tensor, expected: int) -> slice | Tensor:
        """Columns for a branch A [r, in], B [out, r]: free ones, or new ones; whole groups are a slot's, the columns beyond r as 0."""
        count = grouped(len(A))
        if len(self.spare) < count:
            old = len(self.of)
            like_it = min(expected * count, self.kept)
            self.lengthen(old + max(grouped(old // 2), count, like_it), A.shape[1], B.shape[0])
            self.spare += range(old, len(self.of))
        self.columns[slot], self.spare, self.found = self.spare[:count], self.spare[count:], None
        self.of[self.numbers(self.columns[slot])] = slot
        return self.numbers(self.columns[slot][: len(A)])

    @property
    def kept(self) -> int:
        """So many columns may be nobody's."""
        return SPARE if slots.takes(self.A) else 0

    def numbers(self, columns: list[int]) -> slice | Tensor:
        """Columns as an index: a slice where they lie side by side, which needs no copy to the device and no wait for it."""
        if columns == list(range(columns[0], columns[0] + len(columns))):
            return slice(columns[0], columns[0] + len(columns))
        return torch.tensor(columns, device=self.A.device)

    def lengthen(self, columns: int, width: int, outputs: int) -> None:
        """Make room for so many columns; what is there stays."""
        old = len(self.of)
        A, B, a, of, act = self.A, self.B, self.a, self.of, self.act
        self.A, self.B, self.a = A.new_zeros(columns, width), A.new_zeros(outputs, columns), a.new_zeros(columns)
        self.of, self.act = of.new_full((columns,), -1), act.new_zeros(columns)
        if old:
            self.A[:old], self.B[:, :old], self.a[:old], self.of[:old], self.act[:old] = A, B, a, of, act

    def widen(self, slots: int) -> None:
        """Make room for so many slots; what is there stays."""
        old = len(self.held)
        held, self.held = self.held, self.held.new_zeros(slots)
        self.held[:old] = held
        for name, neutral in ROWS.items():
            value = getattr(self, name)
            if value is not None:
                wider = value.new_full((slots, value.shape[1]), neutral)
                wider[:old] = value
                setattr(self, name, wider)

    def free(self, slot: int) -> None:
        """Empty a slot: its rows see the bare base, and its columns are there for others."""
        if slot not in self.holders:
            return  # it is empty
        for name, neutral in ROWS.items():
            if getattr(self, name) is not None:
                getattr(self, name)[slot] = neutral
        own, self.found = self.columns.pop(slot, []), None
        if own:
            index = self.numbers(own)
            self.A[index], self.B[:, index], self.a[index], self.of[index], self.act[index] = 0, 0, 0, -1, 0
            self.spare = sorted(self.spare + own)
        self.held[slot] = False
        self.holders.discard(slot)

    def trim(self) -> bool:
        """Give back columns where three of four, and more than may be, are nobody's; whether any slot has a form here."""
        used = [column for own in self.columns.values() for column in own]
        if len(self.of) > max(4 * len(used), self.kept if used else 0):
            A, B, a, of, act = self.A, self.B, self.a, self.of, self.act
            self.A, self.B, self.a, self.of, self.act = A[:0], B[:, :0], a[:0], of[:0], act[:0]
            self.lengthen(len(used), A.shape[1], B.shape[0])
            index, n = torch.tensor(used, dtype=torch.long, device=A.device), len(used)
            self.A[:n], self.B[:, :n], self.a[:n], self.of[:n], self.act[:n] = A[index], B[:, index], a[index], of[index], act[index]
            place = {column: number for number, column in enumerate(used)}
            self.columns = {slot: [place[column] for column in own] for slot, own in self.columns.items()}
            self.spare, self.found = list(range(n, len(self.of))), None
        return bool(self.holders)

    def state(self) -> tuple[object, ...]:
        """What a recorded graph depends on: which tensors there are, where, and what is computed with them."""
        return (*map(place_of, (self.c, self.i, self.b, self.A, self.B, self.a, self.of, self.act, self.held)), self.fields)

    def has(self, name: str) -> bool:
        """Whether any slot has had this field (or this activation)."""
        return name in self.fields

    def scaled(self, s: Tensor, x: Tensor) -> Tensor:
        """x' = i[s] * x, or x itself where no adapter scales inputs."""
        return x if self.i is None else scaled(x, self.i[s])

    def forward(self, s: Tensor, source: Tensor, y: Tensor, present: frozenset[int] | None = None) -> Tensor:
        """s broadcasts to y's leading dimensions; source is x' [..., in], ids [...], or y; y [..., out] -> y' [..., out].

        Where the forms add to x, x stands for y and the output of the base for source. Where the slots that occur are known (`present`),
        columns of no other are read.
        """
        if is_fast(source, y) and all(value.is_contiguous() for value in (self.B, self.c, self.b) if value is not None):
            stack = self.stack(y.shape[-1])
            return y if stack is None else slots.run(stack, flat(s, y), rows(source), [rows(y)])[0].view(y.shape)
        out = y if self.c is None else scaled(y, self.c[s])
        own = self.part(present)
        of = self.of[own]
        if self.has("A") and len(of):
            h = project(source, self.A[own])
            h = self.activated(h + self.a[own] if self.has("a") else h, self.act[own])
            h = torch.where(of == s[..., None], h, 0)  # no product with 0: what overflows in one adapter is nothing to another
            out = out + F.linear(h, self.B[:, own])
        return out if self.b is None else shifted(out, self.b[s])

    def part(self, present: frozenset[int] | None) -> slice | Tensor:
        """The columns of some slots, or (None) all."""
        if present is None:
            return slice(None)
        if self.found is None or self.found[0] != present:
            own = sorted(column for slot in present for column in self.columns.get(slot, ()))
            self.found = present, self.numbers(own) if own else slice(0)
        return self.found[1]

    def stack(self, outputs: int) -> slots.Stack | None:
        """The pack as the kernels take it; None where all that it does is done before (i)."""
        if not len(self.of):
            return None if self.c is None and self.b is None else slots.Stack((outputs,), c=self.c, b=self.b)
        a = self.a if self.has("a") else None
        return slots.Stack((outputs,), self.A, self.B, a, self.of, self.act, self.c, self.b, self.acts())

    def acts(self) -> tuple[tuple[int, str], ...]:
        """The numbers and names of the activations that any slot has had."""
        return tuple((code, name) for code, name in enumerate(CODES) if name != "identity" and self.has(name))

    def activated(self, h: Tensor, act: Tensor) -> Tensor:
        """Each column of h [..., columns] through its own activation, the one of its number in act [columns]."""
        for code, name in self.acts():
            h = torch.where(act == code, ACTIVATIONS[name](h), h)
        return h


def as_held(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """A form's tensor as a pack in some dtype holds it: in that dtype, but scales in float32 at least."""
    return value.to(torch.promote_types(dtype, torch.float32) if name in ("c", "i") else dtype)


def place_of(value: Tensor | None) -> tuple[object, ...]:
    """Where a tensor lies and how: another of the same shape may take the place of one that was given back, and one of another may too."""
    return () if value is None else (value.data_ptr(), *value.shape, *value.stride())


def grouped(columns: int) -> int:
    """So many columns, in the groups that kernels read."""
    return -(-columns // slots.GROUP) * slots.GROUP


def is_fast(source: Tensor, y: Tensor) -> bool:
    """Whether kernels run on what a pack reads and what it adds to: nothing is differentiated or compiled."""
    if torch.compiler.is_compiling() or not slots.takes(y) or source.dtype != y.dtype:
        return False
    return not (torch.is_grad_enabled() and (source.requires_grad or y.requires_grad))


def rows(value: Tensor) -> Tensor:
    """[..., n] as [T, n], each row contiguous."""
    flattened = value.reshape(-1, value.shape[-1])
    return flattened if flattened.stride(1) == 1 else flattened.contiguous()


def flat(s: Tensor, y: Tensor) -> Tensor:
    """A slot for each row of `rows(y)`."""
    return s.expand(y.shape[:-1]).reshape(-1)


def turns(names: int, rows: int) -> int:
    """How many rows in turn (beams) each of so many routed names has. Raises AdapterError where they do not come out even."""
    if rows % names:
        raise AdapterError(f"{names} names are routed and the batch has {rows} rows: give route a name for each row")
    return rows // names


def slots_of(s: Tensor, shape: Sequence[int]) -> Tensor:
    """Bring slots s [rows] (or one a token, [rows, T]) to a module's leading shape [B, ...], B a multiple of rows (beams)."""
    if tuple(s.shape) == tuple(shape):
        return s
    rows = s.repeat_interleave(turns(len(s), shape[0]), 0)
    return rows.reshape(shape[0], *[1] * (len(shape) - 1)) if rows.dim() == 1 else rows
