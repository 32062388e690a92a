"""Binary PLY of meshes and of points, with colours; knows nothing of who made them."""

import numpy as np
from numpy.typing import NDArray

from services.media.triangles import check, sample

NUM_POINTS = 16_384
VERTEX = np.dtype([("position", "<f4", 3), ("colour", "u1", 3)])
FACE = np.dtype([("num_corners", "u1"), ("corners", "<i4", 3)])
FACES = "property list uchar int vertex_indices"
HEAD = """ply
format binary_little_endian 1.0
{}element vertex {}
property float x
property float y
property float z
property uchar red
property uchar green
property uchar blue
"""


def encode(
    vertices: NDArray[np.float32], faces: NDArray[np.integer], colours: NDArray[np.float32], comment: str = ""
) -> bytes:
    """Return a PLY file of a triangle mesh; colours are rounded to 8 bits.

    Args:
        vertices: positions, shape (n, 3).
        faces: indices of vertices, counted from 0, shape (m, 3), m > 0.
        colours: red, green and blue of each vertex, shape (n, 3), in [0, 1]; clipped outside.
        comment: a line of ASCII.

    Raises:
        ValueError: it is no mesh.

    Source: Turk, The PLY polygon file format, 1994.
    """
    check(vertices, faces, colours)
    table = np.empty(len(faces), FACE)
    table["num_corners"], table["corners"] = 3, faces
    head = f"{_head(len(vertices), comment)}element face {len(faces)}\n{FACES}\nend_header\n"
    return head.encode("ascii") + _rows(vertices, colours) + table.tobytes()


def encode_points(
    vertices: NDArray[np.float32],
    faces: NDArray[np.integer],
    colours: NDArray[np.float32],
    num_points: int = NUM_POINTS,
    comment: str = "",
) -> bytes:
    """Return a PLY file of `num_points` points of the mesh's surface.

    Raises:
        ValueError: it is no mesh.
    """
    check(vertices, faces, colours)
    head = f"{_head(num_points, comment)}end_header\n"
    return head.encode("ascii") + _rows(*sample(vertices, faces, colours, num_points))


def _head(num_vertices: int, comment: str) -> str:
    return HEAD.format(f"comment {comment}\n" if comment else "", num_vertices)


def _rows(positions: NDArray[np.float32], colours: NDArray[np.float32]) -> bytes:
    table = np.empty(len(positions), VERTEX)
    table["position"], table["colour"] = positions, np.rint(np.clip(colours, 0, 1) * 255)
    return table.tobytes()
