"""Marching cubes over the cubes that a surface crosses: a fine grid has few of them.

Equal to the library's own `MeshDecoder`, vertex by vertex, which visits every cube of the grid several times.
Source: Lorensen and Cline, Marching cubes, 1987; the numbering of corners and edges is that of the checkpoint's tables.
"""

import torch

# Where the 12 edges of a cube begin; four go along x, four along y, four along z.
EDGE_STARTS = torch.tensor(
    [
        *[[0, y, z] for z in (0, 1) for y in (0, 1)],
        *[[x, 0, z] for z in (0, 1) for x in (0, 1)],
        *[[x, y, 0] for y in (0, 1) for x in (0, 1)],
    ]
)
AXES = torch.eye(3, dtype=torch.long)


def find_surface(
    field: torch.Tensor, triangles: torch.Tensor, is_used: torch.Tensor, low: torch.Tensor, size: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return vertices (n, 3) and faces (m, 3) of where `field` turns positive.

    Args:
        field: values at the corners of the grid's cubes, (x, y, z); positive is inside.
        triangles: edges of up to five triangles, (256, 5, 3), by which of a cube's corners are inside: corner
            (x, y, z) is bit x + 2 y + 4 z.
        is_used: which of the five there are, (256, 5).
        low: where corner (0, 0, 0) is.
        size: what lies between it and the last corner.
    """
    shape = torch.tensor(field.shape, device=field.device)
    corners = (field > 0).to(torch.uint8)
    pairs = corners[:-1] | corners[1:] << 1
    squares = pairs[:, :-1] | pairs[:, 1:] << 2
    cases = squares[:, :, :-1] | squares[:, :, 1:] << 4
    cubes = ((cases != 0) & (cases != 255)).nonzero()
    case = cases[tuple(cubes.T)].long()
    cube, nth = is_used[case].nonzero(as_tuple=True)
    edges = triangles[case[cube], nth].reshape(-1)
    starts = cubes[cube].repeat_interleave(3, dim=0) + EDGE_STARTS.to(field.device)[edges]
    axes = edges // 4

    flat = ((axes * shape[0] + starts[:, 0]) * shape[1] + starts[:, 1]) * shape[2] + starts[:, 2]
    found, faces = flat.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    first = torch.stack([found // (shape[1] * shape[2]) % shape[0], found // shape[2] % shape[1], found % shape[2]], 1)
    second = first + AXES.to(field.device)[found // shape.prod()]
    before, after = field[tuple(first.T)], field[tuple(second.T)]
    part = (before / (before - after))[:, None]
    near, far = (corner.float() / (shape - 1) * size + low for corner in (first, second))
    return part * far + (1 - part) * near, faces.reshape(-1, 3)
