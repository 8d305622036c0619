"""A drawing of one transformer block for each method: what of it is trained, made from the record's `sites` alone.

A site is {"role", "form", "note"}: its role says which box of the drawing it is, its form and the tensors named in its note say
how it is marked:

    affine            the box is tinted and carries badges: an hourglass (A and B, a narrow side path), × (a rescaling), + (a bias);
                      at a whole sublayer an hourglass stands in the line itself
    replacement       the box is filled: a trained twin of the base's own weights
    virtual tokens    a row of dots: at attention (keys and values) or in front of the embedding

The SVG is drawn by hand in CSS variables (--ink, --muted, --line, --card and the family's colour as --fam).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from graft.compare import wording
from graft.compare.report.canvas import escaped
from graft.compare.report.summary import Row

WIDTH, HEIGHT = 220, 328
SUMS = (176, 278)  # where sublayers are added to the residual line
SUBLAYERS = {"attention": 158, "mlp": 260, "residual": 260, "block": 297}
LINEAR = ("query", "key", "value", "qkv", "attention_out", "gate", "up", "gate_up", "down")
INSIDE = ("norm", *LINEAR)
WORDS = {
    "qkv": "query, key and value together", "attention_out": "attention output", "gate_up": "gate and up together", "down": "MLP down",
    "gate": "MLP gate", "up": "MLP up", "attention": "after attention", "mlp": "after the MLP", "block": "whole block",
    "residual": "beside the MLP, from the residual",
    "cache": "keys and values of every layer", "head": "output head", "norm": "norms",
    "position": "position embeddings", "model": "the whole model", "other": "other modules",
}  # fmt: skip
SCALES = {"c", "i", "m", "l", "magnitude", "scale", "scales", "vector", "gain"}
PATHS = {"A", "B", "down", "up"}


@dataclass
class Marks:
    """How a box is marked: `badges` of "path", "scale", "bias"; `solid` for a replacement; `tokens` for virtual tokens."""

    badges: list[str] = field(default_factory=list)
    solid: bool = False
    tokens: bool = False


def roles_text(row: Row) -> str:
    """Say in words where a method acts: "query, value"."""
    roles = {str(site.get("role", "")) for site in sites_of(row)}
    names = dict.fromkeys(place(site) for site in sites_of(row))
    if {"attention_out", "down"} <= roles and roles & {"query", "qkv"} and roles & {"up", "gate_up"}:
        linear = [WORDS.get(role, role) for role in LINEAR]
        names = dict.fromkeys(["every linear layer of attention and MLP", *(name for name in names if name not in linear)])
    return wording.listed(name for name in names if name) if names else ""


def place(site: Mapping[str, Any]) -> str:
    """Name the place where one site acts."""
    role = str(site.get("role") or "")
    virtual = str(site.get("form") or "").startswith("virtual")
    return "in front of the text" if virtual and role == "embedding" else WORDS.get(role, role)


def sites_of(row: Row) -> tuple[dict[str, Any], ...]:
    """Return the sites recorded for a row."""
    return next((run.sites for run in row.runs if run.sites), ())


def marked(sites: Iterable[Mapping[str, Any]]) -> dict[str, Marks]:
    """Map each role to its marks."""
    out: dict[str, Marks] = {}
    for site in sites:
        role, form, note = (str(site.get(key) or "") for key in ("role", "form", "note"))
        marks = out.setdefault(role.lower(), Marks())
        kind = re.sub(r"[^a-z]", "", form.lower())
        if kind.startswith("replace"):
            marks.solid = True
        elif kind.startswith("virtual"):
            marks.tokens = True
        else:
            marks.badges += [badge for badge in badges(note) if badge not in marks.badges]
    return spread_whole(out)


def badges(note: str) -> list[str]:
    """Read from a site's note ("A 8x576, B 576x8, magnitude 576") which kinds of tensors are trained there."""
    names = set(re.findall(r"([A-Za-z_]+)\s*[\[(]?\d", note)) | set(re.findall(r"[A-Za-z_]+", note)) & {"magnitude"}
    found = ["path"] if names & PATHS else []
    if names & SCALES:
        found.append("scale")
    return found + (["bias"] if names & {"b", "bias"} and not found else [])


def spread_whole(marks: dict[str, Marks]) -> dict[str, Marks]:
    """A replaced block or model is drawn as all of its boxes replaced."""
    whole = [role for role in ("block", "model", "") if role in marks and marks[role].solid]
    if not whole:
        return marks
    inside = (*INSIDE, "embedding", "head") if whole != ["block"] else INSIDE
    return {**marks, **{role: Marks(solid=True) for role in inside}}


def block_svg(row: Row) -> str:
    """Return the drawing as an <svg> element; a row without sites gets the plain block."""
    sites = sites_of(row)
    marks = marked(sites)
    gated = next((run.gated for run in row.runs if run.gated is not None), True) or bool({"gate", "gate_up"} & set(marks))
    where = roles_text(row) or "nothing inside the model"
    label = escaped(f"One transformer block; {row.entry.title} trains: {where}.")
    parts = [*wires(), *sublayer(marks), *boxes(marks, gated), *tokens(marks)]
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def wires() -> list[str]:
    """Draw the block's frame, the line through it and the two residual lines."""
    path = f"M110 24V306M110 46H27V{SUMS[0]}H110M110 {SUMS[0] + 6}H27V{SUMS[1]}H110"
    signs = (f'<circle class="sum" cx="110" cy="{y}" r="6"/><path class="plus" d="M106.5 {y}h7M110 {y - 3.5}v7"/>' for y in SUMS)
    return ['<rect class="frame" x="12" y="40" width="196" height="248" rx="9"/>', f'<path class="wire" d="{path}"/>', *signs]


def sublayer(marks: Mapping[str, Marks]) -> list[str]:
    """Draw a network with a narrow middle in the line behind a sublayer."""
    return [
        f'<path class="on solid" d="M82 {y - 8}H138L117 {y}L138 {y + 8}H82L103 {y}Z"/>'
        for role, y in SUBLAYERS.items()
        if role in marks and not marks[role].solid
    ]


def boxes(marks: Mapping[str, Marks], gated: bool) -> list[str]:
    """Draw every box of the block, and the embedding and the head around it."""
    fused, joined = "qkv" in marks and not {"query", "key", "value"} & set(marks), "gate_up" in marks and not {"gate", "up"} & set(marks)
    places: list[tuple[str, str, float, float, float, float]] = [
        ("embedding", "embedding", 60, 6, 100, 20),
        ("norm", "norm", 44, 54, 132, 13),
    ]
    if fused:
        places.append(("qkv", "query · key · value", 44, 75, 132, 21))
    else:
        places += [("query", "query", 44, 75, 41, 21), ("key", "key", 89.5, 75, 41, 21), ("value", "value", 135, 75, 41, 21)]
    places += [
        ("softmax", "attention", 44, 103, 132, 17),
        ("attention_out", "output", 44, 127, 132, 19),
        ("norm", "norm", 44, 190, 132, 13),
    ]
    if joined:
        places.append(("gate_up", "gate · up", 44, 209, 132, 18))
    elif gated:
        places += [("gate", "gate", 44, 209, 64, 18), ("up", "up", 112, 209, 64, 18)]
    else:
        places.append(("up", "up", 44, 209, 132, 18))
    places += [("down", "down", 44, 232, 132, 17), ("head", "head", 60, 306, 100, 18)]
    return [box(marks.get(role), name, x, y, width, height) for role, name, x, y, width, height in places]


def box(marks: Marks | None, name: str, x: float, y: float, width: float, height: float) -> str:
    """Draw one named box with its marks."""
    kind = "" if marks is None or marks.tokens else " on solid" if marks.solid else " on"
    quiet = " quiet" if name in ("norm", "attention") else ""
    out = f'<rect class="box{quiet}{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4"/>'
    out += f'<text class="word{kind}" x="{x + width / 2:g}" y="{y + height / 2 + 3.3:g}">{name}</text>'
    for number, badge in enumerate(marks.badges if marks and kind else []):
        out += badge_svg(badge, x + 7 if number else x + width - 7, y - 0.5)
    return out


def badge_svg(kind: str, x: float, y: float) -> str:
    """Draw a badge centred at (x, y)."""
    signs = {
        "path": f"M{x - 3.5:g} {y - 3.2:g}h7l-2.5 3.2l2.5 3.2h-7l2.5 -3.2Z",
        "scale": f"M{x - 2.5:g} {y - 2.5:g}l5 5m0 -5l-5 5",
        "bias": f"M{x - 3.2:g} {y:g}h6.4m-3.2 -3.2v6.4",
    }
    return f'<circle class="badge" cx="{x:g}" cy="{y:g}" r="6.2"/><path class="sign {kind}" d="{signs[kind]}"/>'


def tokens(marks: Mapping[str, Marks]) -> list[str]:
    """Draw virtual tokens: beside attention for keys and values, in front of the embedding for a prompt."""
    out = []
    for role, each in marks.items():
        if each.tokens:
            x, y = (14, 16) if role == "embedding" else (182, 111.5)
            dots = "".join(
                f'<circle class="token" cx="{x + 4 + 9 * column:g}" cy="{y:g}" r="3.6"/>' for column in range(4 if x == 14 else 3)
            )
            out.append(dots if x == 182 else f'{dots}<path class="wire" d="M48 {y}h10"/>')
    return out


def icon(body: str) -> str:
    """Return a small drawing for the legend."""
    return f'<svg viewBox="0 0 34 18" aria-hidden="true">{body}</svg>'


LEGEND = [
    (icon('<rect class="box on" x="2" y="2" width="30" height="14" rx="4"/>' + badge_svg("path", 17, 9)), "a narrow side path is added"),
    (icon('<path class="on solid" d="M5 1H29L20 9L29 17H5L14 9Z"/>'), "a small network in the line"),
    (icon('<rect class="box on" x="2" y="2" width="30" height="14" rx="4"/>' + badge_svg("scale", 17, 9)), "outputs are rescaled"),
    (icon('<rect class="box on" x="2" y="2" width="30" height="14" rx="4"/>' + badge_svg("bias", 17, 9)), "a bias is trained"),
    (icon('<rect class="box on solid" x="2" y="2" width="30" height="14" rx="4"/>'), "the model’s own weights are trained"),
    (icon("".join(f'<circle class="token" cx="{x}" cy="9" r="3.6"/>' for x in (8, 17, 26))), "virtual tokens"),
]
