"""Binary glTF of one mesh with vertex colours; knows nothing of who made it."""

import json
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.media.triangles import check, normals

NO_EXTRAS: Mapping[str, Any] = MappingProxyType({})
FLOAT, UINT = 5126, 5125
ARRAY, ELEMENTS = 34962, 34963
Y_UP = [-(0.5**0.5), 0.0, 0.0, 0.5**0.5]  # a quarter turn around x: what we make has z up
MATTE = {"pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0}, "doubleSided": True}


def encode(
    vertices: NDArray[np.float32],
    faces: NDArray[np.integer],
    colours: NDArray[np.float32],
    extras: Mapping[str, Any] = NO_EXTRAS,
) -> bytes:
    """Return a GLB file of a triangle mesh, whose z axis points upwards.

    Args:
        vertices: positions, shape (n, 3).
        faces: indices of vertices, counted from 0, shape (m, 3), m > 0.
        colours: red, green and blue of each vertex, shape (n, 3), as displays take them (sRGB), in [0, 1]; clipped
            outside, and stored linear, as the format has it.
        extras: of the asset, as JSON.

    Raises:
        ValueError: it is no mesh.

    Source: Khronos, glTF 2.0 Specification, 3.7 and 4.
    """
    check(vertices, faces, colours)
    tables = [vertices, normals(vertices, faces), linear(np.clip(colours, 0, 1)), faces.reshape(-1)]
    blobs = [table.astype("<u4" if table is tables[3] else "<f4").tobytes() for table in tables]
    starts = np.cumsum([0, *map(len, blobs)]).tolist()
    views = [
        {"buffer": 0, "byteOffset": start, "byteLength": len(blob), "target": ELEMENTS if blob is blobs[3] else ARRAY}
        for start, blob in zip(starts, blobs, strict=False)
    ]
    of_vertices = {"componentType": FLOAT, "count": len(vertices), "type": "VEC3"}
    low, high = (edge.astype(np.float32).tolist() for edge in (vertices.min(axis=0), vertices.max(axis=0)))
    accessors: list[dict[str, Any]] = [
        {"bufferView": 0, **of_vertices, "min": low, "max": high},
        {"bufferView": 1, **of_vertices},
        {"bufferView": 2, **of_vertices},
        {"bufferView": 3, "componentType": UINT, "count": faces.size, "type": "SCALAR"},
    ]
    attributes = {"POSITION": 0, "NORMAL": 1, "COLOR_0": 2}
    document = {
        "asset": {"version": "2.0", "generator": "Atelier"} | ({"extras": dict(extras)} if extras else {}),
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "rotation": Y_UP}],
        "meshes": [{"primitives": [{"attributes": attributes, "indices": 3, "material": 0}]}],
        "materials": [MATTE],
        "buffers": [{"byteLength": starts[-1]}],
        "bufferViews": views,
        "accessors": accessors,
    }
    text = json.dumps(document, separators=(",", ":")).encode("ascii")
    chunks = chunk(b"JSON", text + b" " * (-len(text) % 4)) + chunk(b"BIN\0", b"".join(blobs))
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def chunk(kind: bytes, content: bytes) -> bytes:
    """Frame `content`, whose length is a multiple of four."""
    return struct.pack("<I4s", len(content), kind) + content


def linear(colours: NDArray[np.float32]) -> NDArray[np.float32]:
    """Undo the gamma of colours in [0, 1]. Source: IEC 61966-2-1."""
    low = colours / 12.92
    high = ((np.maximum(colours, 0.04045) + 0.055) / 1.055) ** 2.4
    return np.where(colours <= 0.04045, low, high).astype(np.float32)
