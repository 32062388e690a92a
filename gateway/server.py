"""The server of one gateway: signals, and what becomes of requests when it stops."""

import socket

import uvicorn
from fastapi import FastAPI

from gateway.drain import Drain

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
                timeout_keep_alive=75,
                timeout_graceful_shutdown=LAST_SECONDS,
                proxy_headers=False,  # nobody may choose the address in the usage log
                server_header=False,
                log_config=None,  # its lines go where ours go
                access_log=False,  # the usage log has it, without the prompts
            )
        )
        self._drain: Drain = app.state.drain

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain; close. A second SIGINT ends all of it at once."""
        await self._drain.run(lambda: self.force_exit)
        await super().shutdown(sockets)
