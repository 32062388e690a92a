"""Requests to URLs that callers name: never to what only this machine or its network can reach; knows no routes.

Every connection's own address is looked at, after its name has been resolved: what a name means may change between a
look and a connection (DNS rebinding). Redirects are answers like any other, and nobody follows them.
"""

import re
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

import httpx
from aiohttp import AddrInfoType

from gateway.errors import UrlNotAllowed
from gateway.transport import AiohttpTransport

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAX_URL = 2000  # characters
MAX_CONNECTIONS = 64
GRAPHIC = re.compile(r"\S+")
NUMBERS = re.compile("[0-9.]+")  # an address, in one of the ways of old: 127.1 is 127.0.0.1
NAT64 = ip_network("64:ff9b::/96")  # IPv4 by way of a translator; RFC 6052


class AddressRefused(OSError):
    """The address is not for callers to name."""


class Guard:
    """Says which addresses callers may name."""

    def __init__(self, allowed: Sequence[Network] = ()) -> None:
        """Let `allowed` be named although they are not public."""
        self._allowed = tuple(allowed)

    def may_reach(self, address: Address) -> bool:
        """Whether it is public or allowed, also where one address is wrapped into another."""
        meant = unwrapped(address)
        if any(one in network for one in (address, meant) for network in self._allowed):
            return True
        is_old = isinstance(meant, IPv6Address) and meant.is_site_local
        return meant.is_global and not (meant.is_multicast or meant.is_reserved or is_old)

    def check(self, url: str, param: str | None = None) -> None:
        """Refuse a URL that could never be asked; its name is only resolved when it is.

        Args:
            url: what the caller named.
            param: where.

        Raises:
            UrlNotAllowed: it is none of HTTP, has credentials, or its address may not be named.
        """
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
            httpx.URL(url)
        except (ValueError, httpx.InvalidURL) as error:
            raise UrlNotAllowed("this is no URL", param) from error
        is_graphic = len(url) <= MAX_URL and GRAPHIC.fullmatch(url) and url.isprintable()
        if parts.scheme not in {"http", "https"} or not host or not is_graphic:
            raise UrlNotAllowed(f"must be an http or https URL of at most {MAX_URL} characters", param)
        if parts.username is not None or parts.password is not None:
            raise UrlNotAllowed("must have no user and password in it", param)
        literal = address_of(host)
        if literal is None and NUMBERS.fullmatch(host):
            raise UrlNotAllowed("must have an address of four numbers, or a name", param)
        if literal is not None and not self.may_reach(literal):
            raise refused(param)

    def socket(self, found: AddrInfoType) -> socket.socket:
        """Open a socket for an address that a name has been resolved to.

        Raises:
            AddressRefused: callers may not name it.
        """
        family, kind, protocol, _, place = found
        address = address_of(str(place[0]))
        if address is None or not self.may_reach(address):
            raise AddressRefused("callers may not name this address")  # in the same words for all: they are compared
        return socket.socket(family, kind, protocol)


class GuardedTransport(httpx.AsyncBaseTransport):
    """Sends what the guard lets pass. To be made inside the event loop."""

    def __init__(self, guard: Guard) -> None:
        """Look at every connection with `guard`."""
        self._guard = guard
        self._transport = AiohttpTransport(MAX_CONNECTIONS, socket_factory=guard.socket)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request`, whose answer must be closed.

        Raises:
            UrlNotAllowed: its URL, or where it leads.
            httpx.TransportError: as the transport does.
        """
        self._guard.check(str(request.url))
        try:
            return await self._transport.handle_async_request(request)
        except httpx.ConnectError as error:
            if is_refusal(error):
                raise refused() from error
            raise

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()


def unwrapped(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for, or else itself."""
    if isinstance(address, IPv4Address):
        return address
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def address_of(host: str) -> Address | None:
    """Read an address; None: it is a name, to be resolved."""
    try:
        return ip_address(host.strip("[]"))
    except ValueError:
        return None


def refused(param: str | None = None) -> UrlNotAllowed:
    """What is said of an address that is not public."""
    return UrlNotAllowed("must lead to a public address; the operator may allow others", param)


def is_refusal(error: BaseException) -> bool:
    """Whether a guard is behind it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, AddressRefused) or isinstance(getattr(cause, "os_error", None), AddressRefused):
            return True
        cause = cause.__cause__
    return False
