"""Meshes repaired, smoothed and of fewer faces, by what trimesh finds in them; and what is said where Open3D is not."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from services.encoders import GlbEncoder
from services.engine.events import Done
from services.engine.outputs import Mesh
from services.errors import GenerationFailed
from services.finals import MeshFiles
from services.mesh.reshaping import reshaped
from services.mesh.schema import MeshRequest

# What Open3D's own import, of libraries for notebooks, has to say.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")


def sphere(*, holes: tuple[int, ...] = (), noise: float = 0) -> Mesh:
    ball = trimesh.creation.icosphere(4)  # 5,120 faces
    keep = np.ones(len(ball.faces), bool)
    keep[list(holes)] = False
    directions = np.asarray(ball.vertices)
    vertices = directions * (1 + noise * np.random.default_rng(0).standard_normal((len(directions), 1)))
    colours = (directions + 1) / 2
    return Mesh(vertices.astype(np.float32), np.asarray(ball.faces)[keep], colours.astype(np.float32))


def as_wanted(mesh: Mesh, **options: Any) -> Any:
    made = reshaped(mesh, MeshRequest(prompt="a", **options))
    assert [str(each.dtype) for each in (made.vertices, made.faces, made.colours)] == ["float32", "int64", "float32"]
    assert len(made.vertices) == len(made.colours)
    assert np.abs(made.colours - (made.vertices + 1) / 2).max() < 0.15  # each went with its vertex
    return trimesh.Trimesh(made.vertices, made.faces, process=False)


def test_what_asks_for_nothing_stays_as_it_is() -> None:
    mesh = sphere()

    assert reshaped(mesh, MeshRequest(prompt="a", num_points=5, smoothing=0, watertight=False)) is mesh
    assert len(as_wanted(mesh, max_faces=6_000).faces) == 5_120


@pytest.mark.parametrize("max_faces", [100, 1_000])
def test_there_are_no_more_faces_than_wanted_and_they_are_the_same_again(max_faces: int) -> None:
    made, again = (as_wanted(sphere(), max_faces=max_faces) for _ in range(2))

    assert max_faces - 2 <= len(made.faces) <= max_faces
    assert np.array_equal(made.vertices, again.vertices)
    assert made.volume == pytest.approx(4.19, rel=0.1)


def test_smoothing_takes_noise_and_not_size() -> None:
    rough, smooth = as_wanted(sphere(noise=0.03), max_faces=5_120), as_wanted(sphere(noise=0.03), smoothing=20)

    def roughness(ball: Any) -> float:
        return float(np.linalg.norm(ball.vertices, axis=1).std())

    assert roughness(smooth) < roughness(rough) / 2
    assert smooth.volume == pytest.approx(4.19, rel=0.05)


def test_holes_are_closed() -> None:
    broken = sphere(holes=(*range(100, 140), 2_000))
    assert not trimesh.Trimesh(broken.vertices, broken.faces).is_watertight
    made = as_wanted(broken, watertight=True, max_faces=1_000)

    assert made.is_watertight
    assert len(made.faces) <= 1_000
    assert made.volume == pytest.approx(4.19, rel=0.05)


@given(st.sets(st.integers(0, 319), max_size=200))
@settings(max_examples=30)
def test_whatever_is_broken_out_is_closed_again(holes: set[int]) -> None:
    ball = trimesh.creation.icosphere(2)  # 320 faces
    keep = np.ones(len(ball.faces), bool)
    keep[list(holes)] = False
    vertices = np.asarray(ball.vertices, np.float32)
    made = reshaped(
        Mesh(vertices, np.asarray(ball.faces)[keep], vertices * 0), MeshRequest(prompt="a", watertight=True)
    )

    assert trimesh.Trimesh(made.vertices, made.faces, process=False).is_watertight
    assert np.abs(made.vertices).max() <= 1


def test_of_a_mesh_that_is_nothing_nothing_can_be_made() -> None:
    line = Mesh(np.zeros((3, 3), np.float32), np.array([[0, 1, 2]]), np.ones((3, 3), np.float32))

    with pytest.raises(GenerationFailed, match="could not be closed"):
        reshaped(line, MeshRequest(prompt="a", watertight=True))


def test_all_files_are_of_the_same_mesh_and_the_cloud_has_its_points() -> None:
    def fewer(mesh: Mesh) -> Mesh:
        return reshaped(mesh, MeshRequest(prompt="a", max_faces=500))

    files = MeshFiles(None, fewer, 1_234)
    files.add(sphere())
    found = {file.variant: b"".join(file.pieces) for file in files.close(Done())}
    loaded: dict[str, Any] = {
        kind: trimesh.load(io.BytesIO(found[kind]), file_type=kind, force="mesh") for kind in ("glb", "obj", "ply")
    }
    points: Any = trimesh.load(io.BytesIO(found["points"]), file_type="ply")
    alone: Any = trimesh.load(io.BytesIO(GlbEncoder(None, fewer).add(sphere())), file_type="glb", force="mesh")

    assert {kind: len(mesh.faces) for kind, mesh in loaded.items()} == dict.fromkeys(loaded, 500)
    assert len(points.vertices) == 1_234
    assert np.linalg.norm(points.vertices, axis=1) == pytest.approx(1, abs=0.1)
    assert len(alone.faces) == 500


@pytest.mark.parametrize(
    "fields", [{"num_points": 0}, {"num_points": 1_000_001}, {"max_faces": 3}, {"smoothing": 101}, {"watertight": "a"}]
)
def test_options_have_bounds(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as refusal:
        MeshRequest(prompt="a", **fields)
    assert refusal.value.errors()[0]["loc"] == tuple(fields)


WITHOUT = """
from services.errors import NotInstalled
from services.mesh.reshaping import load
try:
    load(["max_faces", "smoothing"])
except NotInstalled as error:
    print(error.status, error.code, error.param, error.message)
"""


@pytest.mark.parametrize(
    ("package", "said"),
    [
        (
            "raise ImportError('libusb-1.0.so.0: cannot open shared object file: No such file or directory')",
            "here: libusb-1.0.so.0: cannot open shared object file",
        ),
        ("import plotly_is_absent", "the Python package 'plotly_is_absent' is not installed (make open3d)"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, package: str, said: str) -> None:
    (tmp_path / "open3d.py").write_text(package)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path.cwd()}"}
    run = subprocess.run([sys.executable, "-c", WITHOUT], env=environment, capture_output=True, text=True, check=True)

    assert run.stdout.startswith("501 not_installed max_faces max_faces and smoothing need Open3D")
    assert said in run.stdout
