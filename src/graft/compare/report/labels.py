"""Direct labels that do not overlap: beside scatter points, and in a column at the ends of lines.

Everything is in pixels. A label of a point tries places around it, near ones first; a place costs its overlap with other labels,
points, lines of error bars and the frame, and its distance. Some rounds of choosing again, each label given the others, settle it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, hypot, pi, sin

ROUNDS = 4
ANGLES = [number * pi / 8 for number in (0, 8, 4, 12, 2, 14, 6, 10, 1, 15, 3, 13, 5, 11, 7, 9)]
DISTANCES = (9.0, 15.0, 24.0, 36.0, 50.0, 66.0, 84.0, 104.0)


@dataclass(frozen=True)
class Box:
    """An upright rectangle."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: "Box") -> float:
        """Return the area both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(width, 0.0) * max(height, 0.0)

    def grown(self, by: float) -> "Box":
        """Return the box with a margin on every side."""
        return Box(self.left - by, self.bottom - by, self.right + by, self.top + by)

    @property
    def area(self) -> float:
        """Return width times height."""
        return (self.right - self.left) * (self.top - self.bottom)


@dataclass(frozen=True)
class Place:
    """A label's box and whether it is far enough from its point to need a leader line."""

    box: Box
    leader: bool


def candidates(x: float, y: float, width: float, height: float) -> list[Place]:
    """List places for a label of the given size around the point (x, y), the nearest first."""
    places = []
    for distance in DISTANCES:
        for angle in ANGLES:
            centre_x = x + cos(angle) * (distance + width / 2)
            centre_y = y + sin(angle) * (distance + height / 2)
            box = Box(centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2)
            places.append(Place(box, distance > DISTANCES[1]))
    return places


def crossed(place: Place, point: tuple[float, float], obstacles: Sequence[Box]) -> float:
    """Count the obstacles that the leader line from point to place runs through, by samples along it."""
    if not place.leader:
        return 0.0
    end_x = min(max(point[0], place.box.left), place.box.right)
    end_y = min(max(point[1], place.box.bottom), place.box.top)
    steps = [(point[0] + (end_x - point[0]) * t / 8, point[1] + (end_y - point[1]) * t / 8) for t in range(2, 8)]
    return sum(any(box.left < x < box.right and box.bottom < y < box.top for x, y in steps) for box in obstacles)


def place_labels(
    points: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], frame: Box, hard: Sequence[Box], soft: Sequence[Box]
) -> list[Place]:
    """Choose a place for the label of each point.

    `hard` are boxes that no label may cover (texts, markers), `soft` ones that it should rather not (error bars).
    """
    options = [candidates(x, y, *size) for (x, y), size in zip(points, sizes, strict=True)]
    marks = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    chosen: list[Place | None] = [None] * len(points)
    order = sorted(range(len(points)), key=lambda index: crowding(points, index))
    for _ in range(ROUNDS):
        for index in order:
            others = [place.box.grown(2) for at, place in enumerate(chosen) if place and at != index]
            through = [*others, *(mark for at, mark in enumerate(marks) if at != index)]
            walls = Walls(frame, [*others, *hard, *marks], soft, through)
            chosen[index] = cheapest(options[index], points[index], walls)
    return [place for place in chosen if place]


@dataclass(frozen=True)
class Walls:
    """What a label should not cover, and what its leader line should not run `through`."""

    frame: Box
    hard: Sequence[Box]
    soft: Sequence[Box]
    through: Sequence[Box]


def cheapest(places: Sequence[Place], point: tuple[float, float], walls: Walls) -> Place:
    """Return the place with the lowest cost; a place's number is part of its cost, so the search ends early."""
    best, least = places[0], float("inf")
    for number, place in enumerate(places):
        if number >= least:
            break
        box = place.box
        bad = sum(box.overlap(wall) for wall in walls.hard) + 3 * (box.area - box.overlap(walls.frame))
        cost = number + 10 * bad + 2 * sum(box.overlap(each) for each in walls.soft) + 60 * crossed(place, point, walls.through)
        if cost < least:
            best, least = place, cost
    return best


def crowding(points: Sequence[tuple[float, float]], index: int) -> float:
    """Return minus the number of neighbours of a point, so that sorting puts the crowded ones first."""
    x, y = points[index]
    return -sum(1 / (1 + hypot(x - a, y - b) / 20) for a, b in points)


def spread(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move heights apart to at least `gap`, in their order, as little as possible and within low..high if they fit there.

    Neighbours that touch form a block, whose labels sit around the block's mean; blocks that meet are joined.
    """
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    blocks: list[list[int]] = []
    for index in order:
        blocks.append([index])
        while len(blocks) > 1 and bottom(blocks[-1], heights, gap, low, high) < top(blocks[-2], heights, gap, low, high) + gap:
            last = blocks.pop()
            blocks[-1].extend(last)
    out = [0.0] * len(heights)
    for block in blocks:
        start = bottom(block, heights, gap, low, high)
        for step, index in enumerate(block):
            out[index] = start + step * gap
    return out


def bottom(block: Sequence[int], heights: Sequence[float], gap: float, low: float, high: float) -> float:
    """Return the height of a block's lowest label."""
    reach = (len(block) - 1) * gap
    middle = sum(heights[index] for index in block) / len(block)
    return max(min(middle - reach / 2, high - reach), low)


def top(block: Sequence[int], heights: Sequence[float], gap: float, low: float, high: float) -> float:
    """Return the height of a block's highest label."""
    return bottom(block, heights, gap, low, high) + (len(block) - 1) * gap
