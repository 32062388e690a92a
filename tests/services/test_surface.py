"""Where a field turns positive, against the library's own decoder."""

import torch
from diffusers.pipelines.shap_e.renderer import MeshDecoder
from hypothesis import given
from hypothesis import strategies as st

from services.mesh.surface import find_surface
from services.tiny import marching_cubes

LOW, SIZE = torch.tensor([-1.0, -2.0, 0.5]), torch.tensor([2.0, 3.0, 1.0])
SIDES = st.integers(2, 9)


def library_surface(field: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    cases, masks = marching_cubes.tables()
    decoder = MeshDecoder()
    decoder.load_state_dict({"cases": cases, "masks": masks})
    made = decoder(field, LOW, SIZE)
    return made.verts, made.faces


def check_is_the_librarys(field: torch.Tensor) -> None:
    vertices, faces = find_surface(field, *marching_cubes.tables(), LOW, SIZE)
    library_vertices, library_faces = library_surface(field)

    assert torch.equal(faces, library_faces)
    assert torch.equal(vertices, library_vertices)


@given(shape=st.tuples(SIDES, SIDES, SIDES), seed=st.integers(0, 2**32), level=st.floats(-3, 3))
def test_any_field_gives_the_librarys_vertices_and_faces(shape: tuple[int, int, int], seed: int, level: float) -> None:
    check_is_the_librarys(torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + level)


def test_a_smooth_shape_gives_the_librarys_vertices_and_faces() -> None:
    x, y, z = torch.meshgrid(*[torch.linspace(-1, 1, 40)] * 3, indexing="ij")

    check_is_the_librarys(0.7 - (x**2 + y**2 + z**2).sqrt() + 0.1 * torch.sin(9 * x) * torch.sin(7 * y))


def test_a_field_that_is_nowhere_positive_has_no_surface() -> None:
    vertices, faces = find_surface(-torch.ones(4, 4, 4), *marching_cubes.tables(), LOW, SIZE)

    assert vertices.shape == (0, 3)
    assert faces.shape == (0, 3)
