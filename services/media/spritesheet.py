"""A film on one picture, as a player shows it while one seeks; knows nothing of who made the frames."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from services.media import jpeg

MAX_TILES = 16
COLUMNS = 4
TILE_SIDE = 160  # pixels, of a frame's longer side
QUALITY = 80


class Spritesheet:
    """Keeps small copies of evenly spaced frames: the first, the last, and what is between.

    Args:
        num_frames: of the film.
    """

    def __init__(self, num_frames: int) -> None:
        num_tiles = min(num_frames, MAX_TILES)
        self._wanted = frozenset(np.linspace(0, num_frames - 1, num_tiles).round().astype(int).tolist())
        self._num_seen = 0
        self._tiles: list[Image.Image] = []

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Look at the next frame, RGB, shape (height, width, 3)."""
        if self._num_seen in self._wanted:
            tile = Image.fromarray(frame)
            tile.thumbnail((TILE_SIDE, TILE_SIDE))
            self._tiles.append(tile)
        self._num_seen += 1

    def close(self, description: str = "", xmp: bytes = b"") -> bytes:
        """Return a JPEG of the frames, four in a row, read like a page.

        Args:
            description: goes into EXIF.
            xmp: a packet of metadata.

        Raises:
            ValueError: there was no frame.
        """
        if not self._tiles:
            raise ValueError("a film needs at least one frame")
        width, height = self._tiles[0].size
        columns = min(COLUMNS, len(self._tiles))
        sheet = Image.new("RGB", (width * columns, height * -(-len(self._tiles) // columns)))
        for nth, tile in enumerate(self._tiles):
            sheet.paste(tile, (width * (nth % columns), height * (nth // columns)))
        return jpeg.encode(np.asarray(sheet), QUALITY, description, xmp)
