"""The latest of what is under way here: progress, previews and what can be heard already, in memory alone."""

import asyncio
from base64 import b64decode
from dataclasses import dataclass, field
from typing import Any

from gateway.waiting import at_most


@dataclass
class Live:
    """Of one job; whoever follows waits for the next change."""

    progress: dict[str, Any] = field(default_factory=dict)
    """`step` of `steps`, `eta_seconds`, `position` in the worker's queue, as far as they are known."""
    preview: dict[str, Any] | None = None
    sound: bytearray = field(default_factory=bytearray)
    """The beginning of the file that is being made."""
    sound_type: str = ""
    version: int = 0
    is_over: bool = False
    """Whether nobody works here on it any more: what has become of it is in the table."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, name: str, data: dict[str, Any]) -> None:
        """Take what a worker says of its work."""
        match name:
            case "progress":
                self.progress = data
            case "preview":
                self.preview = data
            case "sound":
                self.sound_type = data["media_type"]
                self.sound += b64decode(data["b64"])

    def tell(self) -> None:
        """Let those who wait look again."""
        self.version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Wait for a change, at most so long."""
        await at_most(seconds, self._changed)

    def shown(self) -> dict[str, Any]:
        """As other gateways read it."""
        return {"progress": self.progress, "preview": self.preview, "version": self.version}
