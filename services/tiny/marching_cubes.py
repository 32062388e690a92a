"""The marching-cubes tables that Shap-E's mesh decoder holds among its weights, computed; knows nothing of a field.

Corner `i` of a cube has the coordinates `(i & 1, i >> 1 & 1, i >> 2 & 1)`; case `c` has the corners inside the surface
whose bits are set in `c`. On each face of the cube the surface's outline keeps every run of inside corners apart, a
rule that the neighbour behind the face follows too: hence no holes. The outlines join into loops over the cube's
edges, and each loop is filled with a fan of triangles.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch

NUM_CASES = 256
MAX_TRIANGLES = 5

AXES = (1, 2, 4)  # the bit of a corner's number that is its x, y, z
EDGES = {
    frozenset((corner, corner | axis)): number
    for number, (axis, corner) in enumerate((axis, corner) for axis in AXES for corner in range(8) if not corner & axis)
}


def _rings() -> Iterator[tuple[int, ...]]:
    """Yield each face's four corners, counter-clockwise as seen from outside."""
    for first, second, third in ((1, 2, 4), (2, 4, 1), (4, 1, 2)):
        ring = (0, second, second | third, third)
        yield ring[::-1]
        yield tuple(first | corner for corner in ring)


RINGS = tuple(_rings())
FACES = tuple(frozenset(edge for ends, edge in EDGES.items() if ends <= set(ring)) for ring in RINGS)


def tables() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cases and masks of diffusers' `MeshDecoder`.

    Returns:
        cases: int64 of shape (256, 5, 3), the edges on which a case's triangles have their corners, turned outwards.
        masks: bool of shape (256, 5), which of the five triangles a case has.
    Source: Lorensen and Cline, Marching Cubes (1987); edges in the order of `_create_flat_edge_indices`.
    """
    cases = torch.zeros(NUM_CASES, MAX_TRIANGLES, 3, dtype=torch.int64)
    masks = torch.zeros(NUM_CASES, MAX_TRIANGLES, dtype=torch.bool)
    for case in range(NUM_CASES):
        triangles = [triangle for loop in _loops(case) for triangle in _fan(loop)]
        masks[case, : len(triangles)] = True
        cases[case, : len(triangles)] = torch.tensor(triangles, dtype=torch.int64).reshape(-1, 3)
    return cases, masks


def _loops(case: int) -> Iterator[list[int]]:
    """Yield the closed loops of edges along which the surface cuts the cube."""
    following: dict[int, int] = {}
    for ring in RINGS:
        following |= _outlines(case, ring)
    while following:
        loop = []
        edge = min(following)
        while edge in following:
            loop.append(edge)
            edge = following.pop(edge)
        yield loop


def _outlines(case: int, ring: tuple[int, ...]) -> dict[int, int]:
    """Map the edge where a run of inside corners ends, going round a face, to the edge where it began."""
    sides = [(corner, ring[place - 3]) for place, corner in enumerate(ring)]
    crossed = [(start, end) for start, end in sides if _is_inside(case, start) != _is_inside(case, end)]
    return {
        EDGES[frozenset(side)]: EDGES[frozenset(crossed[place - 1])]
        for place, side in enumerate(crossed)
        if _is_inside(case, side[0])
    }


def _is_inside(case: int, corner: int) -> bool:
    return bool(case >> corner & 1)


def _fan(loop: list[int]) -> list[tuple[int, int, int]]:
    """Fill a loop with triangles around a tip from which all diagonals run through the cube's inside.

    A diagonal on a face could be the neighbouring cube's as well, and four triangles would meet in it.
    """
    turns = (loop[place:] + loop[:place] for place in range(len(loop)))
    tip, *rest = next(turn for turn in turns if not any(_is_on_face(turn[0], edge) for edge in turn[2:-1]))
    return [(tip, second, first) for first, second in pairwise(rest)]


def _is_on_face(*edges: int) -> bool:
    return any(face.issuperset(edges) for face in FACES)
