"""The server of one gateway: signals, and what becomes of requests when it stops."""

import gc
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from gateway.drain import Drain
from gateway.protocol import BoundedProtocol

LAST_SECONDS = 1  # for what still runs when our own patience has ended: it is cut then, and its usage row is written


class Server(uvicorn.Server):
    """Drains before it closes its port: until then whoever comes is told something better than a refused connection."""

    def __init__(self, app: FastAPI, host: str, port: int) -> None:
        """Take what to serve, and where."""
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                http=BoundedProtocol,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=LAST_SECONDS,
                proxy_headers=False,  # nobody may choose the address in the usage log
                server_header=False,
                ws="none",  # there are none, and refusing one would log its query
                log_config=None,  # its lines go where ours go
                access_log=False,  # the usage log has it, without the prompts
            )
        )
        self._drain: Drain = app.state.drain
        self._is_in_a_hurry = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open; what is there by then stays, and the collector need not go through it again and again."""
        await super().startup(sockets)
        gc.collect()
        gc.freeze()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; a second signal waits for nothing under way, a third SIGINT not even for the usage log."""
        if self.should_exit and not self._is_in_a_hurry:
            self._is_in_a_hurry = True
        else:
            super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain; close."""
        await self._drain.run(lambda: self._is_in_a_hurry)
        await super().shutdown(sockets)
