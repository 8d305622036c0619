"""Operators of ours, as torch's dispatcher and compiler take them, with nothing around them.

`torch.library.custom_op` checks at each call what a test can check once (that no output is an input's memory), and keeps autograd's and
versions' books, which nobody reads inside a backward pass of one's own: 19 µs a call on a fast host instead of 3, and a step of a small
model makes hundreds of calls.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., Any])
LIBRARY = torch.library.Library("graft", "FRAGMENT")  # type: ignore[no-untyped-call]
TAGS = (torch.Tag.pt2_compliant_tag,)


def operator(name: str, like: Callable[..., Any], *, mutates: tuple[str, ...] = ()) -> Callable[[F], F]:
    """Make a function of annotated tensors and numbers the operator `graft::name`.

    `like` gives empty tensors of the shapes and layouts that it gives, from the same arguments without values. It writes to no argument but
    those in `mutates`, gives new memory, and has no gradient: it is called where none is asked for, or gets one by
    `torch.library.register_autograd`.
    """

    def made(work: F) -> F:
        LIBRARY.define(name + torch.library.infer_schema(work, mutates_args=mutates), tags=TAGS)  # type: ignore[no-untyped-call]
        LIBRARY.impl(name, work, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"graft::{name}", like, lib=LIBRARY)
        return cast(F, getattr(torch.ops.graft, name).default)

    return made
