"""Who is behind a name right now: `dns+http://text:3000` stands for a replica at each address of `text`.

Connections are kept, so a name alone would lead all requests of a gateway to the one address that its connections have.
Knows no worker.
"""

import asyncio
import logging
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from urllib.parse import urlsplit

PREFIX = "dns+"
LOOK_SECONDS = 2.0  # that somebody waits for an answer; who asks again later may still get it
NOBODY = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})  # not where DNS is ill

logger = logging.getLogger("atelier.gateway")


class Names:
    """Asks the system's resolver, and remembers its last good answers."""

    def __init__(self) -> None:
        """Know nobody yet."""
        self._known: dict[str, Sequence[str]] = {}
        self._asked: dict[str, asyncio.Future[Sequence[str]]] = {}
        self._failing: set[str] = set()
        # Apart from the loop's own threads, which others need: a resolver that is away holds one for many seconds.
        self._threads = ThreadPoolExecutor(thread_name_prefix="names")

    async def urls(self, listed: Sequence[str]) -> list[str]:
        """Return the URLs of all replicas: one for each address of a name, and what is no name as it is.

        A name that has no address stands for nobody. As long as the resolver does not answer, all stays as it was.
        """
        found = await asyncio.gather(*map(self._urls, listed))
        return list(dict.fromkeys(chain.from_iterable(found)))

    async def _urls(self, url: str) -> Sequence[str]:
        if not url.startswith(PREFIX):
            return (url,)
        if (asked := self._asked.get(url)) is None:
            loop = asyncio.get_running_loop()
            asked = self._asked[url] = loop.run_in_executor(self._threads, resolved, url)
        await asyncio.wait([asked], timeout=LOOK_SECONDS)
        if asked.done():
            self._asked.pop(url, None)  # of two who waited, the other one may have been here
            try:
                self._known[url] = asked.result()
                self._failing.discard(url)
            except (OSError, UnicodeError) as error:
                if url not in self._failing:  # said once, not every time
                    logger.warning("%s cannot be looked up: %s", url, error)
                self._failing.add(url)
        return self._known.get(url, ())

    def close(self) -> None:
        """Wait for no answer any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def resolved(url: str) -> Sequence[str]:
    """Return the URLs behind one with a name, by the addresses that the name has.

    Those are of one kind, IPv4 or IPv6: a worker that has both is one.

    Raises:
        OSError: nobody knows now.
        UnicodeError: nothing can be called so.
    """
    parts = urlsplit(url.removeprefix(PREFIX))
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in NOBODY:
            return ()
        raise
    kind = found[0][0]
    addresses = [str(address) for family, _, _, _, (address, *_) in found if family == kind]
    hosts = [f"[{address}]" if ":" in address else address for address in addresses]
    return [parts._replace(netloc=f"{host}:{parts.port or 80}").geturl() for host in hosts]
