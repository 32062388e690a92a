"""Meshes of triangles with a colour at each vertex: what all formats of them need."""

import numpy as np
from numpy.typing import NDArray


def check(vertices: NDArray[np.float32], faces: NDArray[np.integer], colours: NDArray[np.float32]) -> None:
    """Refuse what is no mesh.

    Args:
        vertices: positions, shape (n, 3).
        faces: indices of vertices, counted from 0, shape (m, 3), m > 0.
        colours: red, green and blue of each vertex, shape (n, 3), in [0, 1].

    Raises:
        ValueError: a shape does not fit, there are no faces, a face names no vertex, or a number is not finite.
    """
    for name, table in (("vertices", vertices), ("faces", faces), ("colours", colours)):
        if table.ndim != 2 or table.shape[1] != 3:
            raise ValueError(f"{name} must have the shape (n, 3), not {table.shape}")
        if not np.isfinite(table).all():
            raise ValueError(f"{name} must be finite, and some are NaN or infinite")
    if len(colours) != len(vertices):
        raise ValueError(f"colours must be as many as vertices: {len(colours)} for {len(vertices)}")
    if not len(faces):
        raise ValueError("faces must not be empty")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise ValueError(f"faces must name vertices 0 to {len(vertices) - 1}, not {faces.min()} to {faces.max()}")


def normals(vertices: NDArray[np.float32], faces: NDArray[np.integer]) -> NDArray[np.float32]:
    """Return which way the surface looks at each vertex: unit vectors, shape (n, 3); large faces count more."""
    first, second, third = (vertices[faces[:, corner]].astype(np.float64) for corner in range(3))
    of_faces = np.cross(second - first, third - first)
    sums = np.zeros(vertices.shape)
    for axis in range(3):
        for corner in range(3):
            sums[:, axis] += np.bincount(faces[:, corner], of_faces[:, axis], len(vertices))
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.where(lengths > 0, sums / np.where(lengths > 0, lengths, 1), [0, 0, 1]).astype(np.float32)


def sample(
    vertices: NDArray[np.float32], faces: NDArray[np.integer], colours: NDArray[np.float32], num_points: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return points of the surface and their colours, both (num_points, 3), as many on each area as it is large.

    The same mesh gives the same points.
    """
    draws = np.random.default_rng(0)
    corners = vertices[faces].astype(np.float64)
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    odds = areas / areas.sum() if areas.sum() > 0 else None
    chosen = draws.choice(len(faces), num_points, p=odds)
    weights = draws.dirichlet((1, 1, 1), num_points)[:, :, None]  # uniform in a triangle
    points = (corners[chosen] * weights).sum(axis=1)
    shades = (np.clip(colours, 0, 1)[faces[chosen]] * weights).sum(axis=1)
    return points.astype(np.float32), shades.astype(np.float32)
