"""Wavefront OBJ with a colour at each vertex; knows nothing of who made the mesh."""

import numpy as np
from numpy.typing import NDArray

from services.media.triangles import check

# Nine digits bring a float32 back exactly; four are finer than 8-bit colour.
VERTEX = "v %.9g %.9g %.9g %.4f %.4f %.4f\n"
FACE = "f %d %d %d\n"


def encode(
    vertices: NDArray[np.float32], faces: NDArray[np.integer], colours: NDArray[np.float32], comment: str = ""
) -> bytes:
    """Return an OBJ file of a triangle mesh.

    Args:
        vertices: positions, shape (n, 3).
        faces: indices of vertices, counted from 0, shape (m, 3), m > 0.
        colours: red, green and blue of each vertex, shape (n, 3), in [0, 1]; clipped outside.
        comment: a line of ASCII.

    Raises:
        ValueError: a shape does not fit, there are no faces, a face names no vertex, or a number is not finite.

    Source: Wavefront OBJ 3.0; `v x y z r g b` is the extension that MeshLab, Blender, trimesh and three.js read.
    """
    check(vertices, faces, colours)
    rows = np.hstack((vertices, np.clip(colours, 0, 1)))
    # The % operator, unlike locale.format_string, always writes a point; one call formats a whole table.
    text = f"# {comment}\n" if comment else ""
    text += (VERTEX * len(rows)) % tuple(rows.ravel().tolist())
    text += (FACE * len(faces)) % tuple((faces.astype(np.int64) + 1).ravel().tolist())
    return text.encode("ascii")
