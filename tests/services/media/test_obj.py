from io import BytesIO

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from services.media import obj

VERTICES = np.array([[0, 0, 0], [1, 0, 0], [0, 1.5, 0], [0, 0, -2]], np.float32)
FACES = np.array([[0, 1, 2], [0, 3, 1], [1, 3, 2], [2, 3, 0]])
COLOURS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.2, 0.4, 0.6]], np.float32)


def read(file: bytes) -> trimesh.Trimesh:
    mesh = trimesh.load_mesh(BytesIO(file), file_type="obj", process=False, maintain_order=True)
    assert isinstance(mesh, trimesh.Trimesh)
    return mesh


def colours_of(mesh: trimesh.Trimesh) -> NDArray[np.uint8]:
    assert isinstance(mesh.visual, trimesh.visual.ColorVisuals)
    return np.asarray(mesh.visual.vertex_colors, np.uint8)[:, :3]


def test_vertices_faces_and_colours_come_back() -> None:
    mesh = read(obj.encode(VERTICES, FACES, COLOURS))

    assert (mesh.vertices == VERTICES).all()
    assert (mesh.faces == FACES).all()
    assert (colours_of(mesh) == np.rint(COLOURS * 255)).all()
    assert mesh.is_watertight


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 30), st.just(3)),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    )
)
@settings(deadline=None)
def test_a_position_keeps_every_bit(vertices: NDArray[np.float32]) -> None:
    file = obj.encode(vertices, np.zeros((1, 3), np.int64), np.zeros_like(vertices))

    rows = [line.split()[1:4] for line in file.decode("ascii").splitlines() if line.startswith("v ")]
    assert (np.array(rows, np.float32) == vertices).all()


def test_a_large_mesh_comes_back_whole() -> None:
    random = np.random.default_rng(0)
    vertices = random.standard_normal((24_000, 3)).astype(np.float32)
    faces = random.permuted(np.arange(144_000, dtype=np.int32) % 24_000).reshape(48_000, 3)
    colours = random.random((24_000, 3)).astype(np.float32)

    mesh = read(obj.encode(vertices, faces, colours))

    assert (mesh.vertices.astype(np.float32) == vertices).all()
    assert (mesh.faces == faces).all()
    assert np.abs(colours_of(mesh) - colours * 255.0).max() <= 0.6


def test_faces_count_from_one() -> None:
    assert b"\nf 1 2 3\n" in obj.encode(VERTICES, FACES, COLOURS)


def test_the_largest_index_of_a_narrow_integer_does_not_wrap() -> None:
    vertices = np.zeros((256, 3), np.float32)

    file = obj.encode(vertices, np.array([[253, 254, 255]], np.uint8), vertices)

    assert file.endswith(b"f 254 255 256\n")


def test_colours_outside_their_range_are_clipped() -> None:
    assert obj.encode(VERTICES, FACES, COLOURS * 3 - 1).startswith(b"v 0 0 0 1.0000 0.0000 0.0000\n")


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_never_written(wrong: float) -> None:
    broken = VERTICES.copy()
    broken[2, 1] = wrong

    with pytest.raises(ValueError, match="vertices must be finite"):
        obj.encode(broken, FACES, COLOURS)
    with pytest.raises(ValueError, match="colours must be finite"):
        obj.encode(VERTICES, FACES, broken)


@pytest.mark.parametrize(
    ("vertices", "faces", "colours", "complaint"),
    [
        (VERTICES[:, :2], FACES, COLOURS, r"vertices must have the shape \(n, 3\), not \(4, 2\)"),
        (VERTICES, FACES.ravel(), COLOURS, r"faces must have the shape \(n, 3\), not \(12,\)"),
        (VERTICES, FACES, COLOURS[:, :1], r"colours must have the shape \(n, 3\), not \(4, 1\)"),
        (VERTICES, FACES, COLOURS[:3], "colours must be as many as vertices: 3 for 4"),
        (VERTICES, FACES[:0], COLOURS, "faces must not be empty"),
        (VERTICES, FACES + 1, COLOURS, "faces must name vertices 0 to 3, not 1 to 4"),
        (VERTICES, FACES - 1, COLOURS, "faces must name vertices 0 to 3, not -1 to 2"),
    ],
)
def test_a_mesh_that_does_not_fit_together_is_refused_by_name(
    vertices: NDArray[np.float32], faces: NDArray[np.int64], colours: NDArray[np.float32], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        obj.encode(vertices, faces, colours)
