"""A file in memory that cannot seek, for libraries that write into one; knows no format."""


class Sink:
    """Keeps what was written until it is taken."""

    def __init__(self) -> None:
        """Begin empty, and open: a library asks."""
        self.closed = False
        self._written: list[bytes] = []

    def write(self, piece: bytes) -> int:
        """Keep `piece`; return its length."""
        self._written.append(piece)
        return len(piece)

    def take(self) -> bytes:
        """Return what was written since the last time."""
        written = b"".join(self._written)
        self._written.clear()
        return written
