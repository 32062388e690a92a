"""What becomes of a mesh before it is written: repaired, smoothed, of fewer faces; knows no model and no HTTP.

Open3D does it, which is large: it is imported when it is needed, and may be absent.
"""

import ctypes
import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from services.engine.outputs import Mesh
from services.errors import GenerationFailed, NotInstalled
from services.mesh.schema import MeshRequest

OPTIONS = ("watertight", "smoothing", "max_faces")
LIBRARIES = {  # that Open3D's wheel needs and has not, and the Debian packages that do
    "libusb-1.0.so.0": "libusb-1.0-0",
    "libGL.so.1": "libgl1",
    "libEGL.so.1": "libegl1",
    "libX11.so.6": "libx11-6",
}


def named(job: MeshRequest) -> Sequence[str]:
    """Return which options of a request need Open3D."""
    return [name for name in OPTIONS if getattr(job, name)]


def load(options: Sequence[str]) -> Any:
    """Import Open3D, which takes seconds the first time.

    Args:
        options: of the request, for the error.

    Raises:
        NotInstalled: it is not there, or a library of the system that it needs.
    """
    try:
        return importlib.import_module("open3d")
    except (ImportError, OSError) as error:
        verb = "needs" if len(options) == 1 else "need"
        said = f"{' and '.join(options)} {verb} Open3D, which cannot be imported here: {remedy(error)}"
        raise NotInstalled(f"{said}; meshes as the model makes them can be had without", param=options[0]) from error


def remedy(error: BaseException) -> str:
    """Say what is missing, and how it is installed."""
    if isinstance(error, ModuleNotFoundError):
        return f"the Python package '{error.name}' is not installed (make open3d)"
    missing = [name for name in LIBRARIES if not is_there(name)]
    if not missing:
        return str(error).partition("\n")[0][:200]
    packages = " ".join(LIBRARIES[name] for name in missing)
    return f"the system lacks {', '.join(missing)} (Debian: apt-get install {packages})"


def is_there(library: str) -> bool:
    """Whether the system has a library."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def reshaped(mesh: Mesh, job: MeshRequest) -> Mesh:
    """Return the mesh as a request wants it: first repaired, then smoothed, then of fewer faces. Colours go along.

    Raises:
        NotInstalled: it wants what needs Open3D, and that is not there.
        GenerationFailed: the surface cannot be closed, or nothing of it would be left.
    """
    options = named(job)
    if not options:
        return mesh
    open3d = load(options)
    shape = shape_of(open3d, mesh)
    if job.watertight:
        shape = closed(open3d, shape)
    if job.smoothing:
        shape = shape.filter_smooth_taubin(job.smoothing)
    if job.max_faces and len(shape.triangles) > job.max_faces:
        shape = shape.simplify_quadric_decimation(job.max_faces)
    if not len(shape.triangles):
        raise GenerationFailed("nothing is left of the mesh with so few faces; raise max_faces")
    if job.watertight and not is_closed(shape):
        raise GenerationFailed("with so few faces the surface does not stay closed; raise max_faces, or leave it out")
    return mesh_of(shape)


def closed(open3d: Any, shape: Any) -> Any:
    """Return a mesh without holes: what is double, has no area or makes an edge of three faces goes; holes are filled.

    Raises:
        GenerationFailed: it still has some.
    """
    if is_closed(shape):
        return shape
    shape.remove_duplicated_vertices()
    shape.remove_duplicated_triangles()
    shape.remove_degenerate_triangles()
    shape.remove_non_manifold_edges()
    shape.remove_unreferenced_vertices()
    shape.orient_triangles()
    filled = shape_of(open3d, with_lids(mesh_of(shape)))
    if not is_closed(filled):
        raise GenerationFailed("the surface could not be closed; leave 'watertight' out, or try another seed")
    return filled


def is_closed(shape: Any) -> bool:
    """Whether every edge has two faces. Open3D's own `is_watertight` compares each face with each other, too."""
    return bool(len(shape.triangles)) and bool(shape.is_edge_manifold(allow_boundary_edges=False))


def with_lids(mesh: Mesh) -> Mesh:
    """Put a lid on each hole: triangles from its edges to a new vertex in the middle of them."""
    edges = np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]])
    there = set(map(tuple, edges.tolist()))
    open_edges = [(start, end) for start, end in there if (end, start) not in there]
    vertices, faces, colours = [mesh.vertices], [mesh.faces], [mesh.colours]
    num_vertices = len(mesh.vertices)
    for loop in loops(sorted(open_edges)):
        vertices.append(mesh.vertices[loop].mean(axis=0, keepdims=True))
        colours.append(mesh.colours[loop].mean(axis=0, keepdims=True))
        rim = np.array(loop)
        middle = np.full(len(loop), num_vertices)
        faces.append(np.stack([np.roll(rim, -1), rim, middle], axis=1))  # the other way round than the hole's faces
        num_vertices += 1
    return Mesh(np.concatenate(vertices), np.concatenate(faces), np.concatenate(colours))


def loops(edges: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
    """Yield rings of vertices that directed edges make; none comes by a vertex twice, so that holes may touch."""
    following: dict[int, list[int]] = {}
    for start, end in edges:
        following.setdefault(start, []).append(end)
    for start in list(following):
        path, place = [start], {start: 0}
        while following.get(path[-1]):
            vertex = following[path[-1]].pop()
            if vertex in place:
                ring = path[place[vertex] :]
                del path[place[vertex] + 1 :]
                place = {each: nth for nth, each in enumerate(path)}
                yield ring
            else:
                place[vertex] = len(path)
                path.append(vertex)


def shape_of(open3d: Any, mesh: Mesh) -> Any:
    """Return a mesh as Open3D has it."""
    shape = open3d.geometry.TriangleMesh(
        open3d.utility.Vector3dVector(mesh.vertices.astype(np.float64)),
        open3d.utility.Vector3iVector(mesh.faces.astype(np.int32)),
    )
    shape.vertex_colors = open3d.utility.Vector3dVector(mesh.colours.astype(np.float64))
    return shape


def mesh_of(shape: Any) -> Mesh:
    """Return a mesh as we have it."""
    return Mesh(
        np.asarray(shape.vertices, np.float32),
        np.asarray(shape.triangles, np.int64),
        np.clip(np.asarray(shape.vertex_colors, np.float32), 0, 1),
    )
