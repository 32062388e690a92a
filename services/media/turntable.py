"""A GIF of a mesh that turns, drawn in software; knows nothing of who made it."""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from services.media.triangles import check, normals

SIDE = 192  # pixels
FINER = 2  # pixels drawn for one, along each side: smooth edges
NUM_FRAMES = 20
FRAME_MS = 100
BACKGROUND = 1.0  # white
AMBIENT = 0.35  # of the light; the rest comes from where the camera is
TILT = 0.45  # radians that the camera looks down
DISTANCE = 4.0  # of the camera, in radii of the mesh
TOUCH = 1e-4  # of a triangle, beyond its edge: no holes between neighbours
LOWER = 2**32 - 1
MAX_CANDIDATES = 1_000_000  # pixels that may be covered, looked at together

Pixels = NDArray[np.uint8]


def encode(
    vertices: NDArray[np.float32], faces: NDArray[np.integer], colours: NDArray[np.float32], comment: str = ""
) -> bytes:
    """Return a GIF in which a mesh turns once around its upright axis, z, without end.

    Args:
        vertices: positions, shape (n, 3).
        faces: indices of vertices, counted from 0, shape (m, 3), m > 0.
        colours: red, green and blue of each vertex, shape (n, 3), in [0, 1]; clipped outside.
        comment: in ASCII.

    Raises:
        ValueError: it is no mesh.
    """
    check(vertices, faces, colours)
    middle = (vertices.max(axis=0) + vertices.min(axis=0)) / 2
    centred = vertices.astype(np.float64) - middle
    centred /= np.linalg.norm(centred, axis=1).max() or 1
    facing = normals(vertices, faces)
    shades = np.clip(colours, 0, 1)
    turns = np.arange(NUM_FRAMES) * (2 * np.pi / NUM_FRAMES)
    frames = [Image.fromarray(draw(centred, faces, shades, facing, turn)) for turn in turns]
    return animate(frames, comment)


def draw(
    vertices: NDArray[np.float64],
    faces: NDArray[np.integer],
    colours: NDArray[np.float32],
    facing: NDArray[np.float32],
    turn: float,
) -> Pixels:
    """Draw one view, uint8 of shape (SIDE, SIDE, 3).

    Args:
        vertices: within the unit sphere.
        faces: three vertices each.
        colours: of the vertices, in [0, 1].
        facing: their normals.
        turn: radians around z.
    """
    view = camera(turn)
    seen = vertices @ view.T  # right, up, towards the camera
    side = SIDE * FINER
    scale = side / 2 * 0.95 * np.sqrt(DISTANCE**2 - 1) / (DISTANCE - seen[:, 2])  # the sphere fits
    at = np.stack([side / 2 + seen[:, 0] * scale, side / 2 - seen[:, 1] * scale], axis=1)
    light = AMBIENT + (1 - AMBIENT) * np.abs(facing @ view[2])  # as bright from behind: a surface may be open
    lit = (colours * light[:, None]).astype(np.float32)

    nearest = np.full(side * side, -1)
    for part in portions(at[faces], side):
        cover(nearest, at[faces[part]], seen[faces[part], 2], part, side)
    fine = np.full((side * side, 3), BACKGROUND, np.float32)
    (shown,) = (nearest >= 0).nonzero()
    triangle = faces[nearest[shown] & LOWER]
    weights = barycentric(at[triangle], shown % side + 0.5, shown // side + 0.5)
    fine[shown] = sum(weights[nth][:, None] * lit[triangle[:, nth]] for nth in range(3))
    tiles = fine.reshape(SIDE, FINER, SIDE, FINER, 3)
    pixels: Pixels = np.rint(tiles.mean(axis=(1, 3)).clip(0, 1) * 255).astype(np.uint8)
    return pixels


def camera(turn: float) -> NDArray[np.float64]:
    """Return the camera's right, up and backward axes, a row each; it looks down on what has turned."""
    around = np.array([[np.cos(turn), np.sin(turn), 0], [-np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    right, up = np.array([1, 0, 0]), np.array([0, np.sin(TILT), np.cos(TILT)])
    axes: NDArray[np.float64] = np.stack([right, up, np.cross(right, up)]) @ around
    return axes


def boxes(corners: NDArray[np.float64], side: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first pixel, (m, 2), and how many, (m, 2), whose centres the boxes around triangles hold."""
    one, two, three = (corners[:, nth] for nth in range(3))  # much quicker than along an axis of three
    low, high = np.minimum(np.minimum(one, two), three), np.maximum(np.maximum(one, two), three)
    first = np.clip(np.ceil(low - 0.5), 0, side).astype(np.int64)
    last = np.clip(np.floor(high - 0.5), -1, side - 1).astype(np.int64)
    return first, np.maximum(last - first + 1, 0)


def portions(corners: NDArray[np.float64], side: int) -> list[NDArray[np.int64]]:
    """Split triangles, so that none of the portions takes too much memory; those without a pixel are left out."""
    _, extent = boxes(corners, side)
    num_pixels = extent[:, 0] * extent[:, 1]
    (visible,) = num_pixels.nonzero()
    return np.split(visible, np.unique((np.cumsum(num_pixels[visible]) // MAX_CANDIDATES), return_index=True)[1][1:])


def cover(
    nearest: NDArray[np.int64],
    corners: NDArray[np.float64],
    heights: NDArray[np.float64],
    names: NDArray[np.int64],
    side: int,
) -> None:
    """Note where triangles are in front of all others.

    Args:
        nearest: of each pixel, (side * side,): how near the triangle is in the upper 32 bits, and its name in the
            lower ones; -1: there is none.
        corners: of the triangles, in pixels, (m, 3, 2).
        heights: how near they are, in [-1, 1], (m, 3).
        names: of the triangles, (m,).
        side: of the picture.
    """
    first, extent = boxes(corners, side)
    num_pixels = extent[:, 0] * extent[:, 1]
    owner = np.repeat(np.arange(len(corners)), num_pixels)
    nth = np.arange(len(owner)) - np.repeat(np.cumsum(num_pixels) - num_pixels, num_pixels)
    down = nth // extent[owner, 0]
    column = first[owner, 0] + nth - down * extent[owner, 0]
    row = first[owner, 1] + down
    weights = barycentric(corners, column + 0.5, row + 0.5, owner)
    inside = ((weights[0] >= -TOUCH) & (weights[1] >= -TOUCH) & (weights[2] >= -TOUCH)).nonzero()[0]
    owner = owner[inside]
    near = sum(weights[nth][inside] * heights[owner, nth] for nth in range(3))
    key = ((np.clip(near, -1, 1) + 1) * 2**30).astype(np.int64) << 32 | names[owner]
    np.maximum.at(nearest, row[inside] * side + column[inside], key)


def barycentric(
    corners: NDArray[np.float64],
    x: NDArray[np.floating],
    y: NDArray[np.floating],
    owner: NDArray[np.int64] | slice = slice(None),
) -> list[NDArray[np.float32]]:
    """Return how much each corner of a triangle has of a point; no numbers where it has no area.

    Args:
        corners: of the triangles, (m, 3, 2).
        x: of the points, (n,).
        y: likewise.
        owner: which triangle each point belongs to, (n,); left out: the one of its own number.
    """
    sides = (corners[:, 1:] - corners[:, :1]).transpose(1, 2, 0)
    (bx, by), (cx, cy) = sides
    area = bx * cy - cx * by
    scale = np.where(area == 0, np.nan, area)
    slopes = (np.stack([cy, -cx, -by, bx]) / scale).astype(np.float32)
    across = (x - corners[:, 0, 0][owner]).astype(np.float32)
    down = (y - corners[:, 0, 1][owner]).astype(np.float32)
    second = slopes[0][owner] * across + slopes[1][owner] * down
    third = slopes[2][owner] * across + slopes[3][owner] * down
    return [1 - second - third, second, third]


def animate(frames: list[Image.Image], comment: str = "") -> bytes:
    """Return a GIF of frames; one palette for all, so that colours do not flicker."""
    looked_at = frames[:: NUM_FRAMES // 4]
    strip = Image.new("RGB", (SIDE, SIDE * len(looked_at)))
    for nth, frame in enumerate(looked_at):
        strip.paste(frame, (0, SIDE * nth))
    palette = strip.quantize(256, method=Image.Quantize.MEDIANCUT)
    first, *rest = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    file = BytesIO()
    said = {"comment": comment} if comment else {}
    first.save(file, "GIF", save_all=True, append_images=rest, duration=FRAME_MS, loop=0, **said)
    return file.getvalue()
