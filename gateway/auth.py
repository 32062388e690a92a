"""Who asks: a key, or anybody where only this machine can ask; pure ASGI, knows no route but those that are open."""

from collections.abc import Callable, Collection
from ipaddress import ip_address
from secrets import token_hex

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.callers import Caller
from gateway.errors import GatewayError, InsufficientScope, InvalidKey, WrongHost, render
from gateway.headers import header
from gateway.keys.keyring import Keyring
from gateway.signing import Signer
from services.logs import request_id

PROBES = frozenset({"/livez", "/readyz"})  # asked by whatever name, and answered also while the database is away
OPEN = frozenset({"/docs", "/redoc", "/openapi.json"})
OPEN_BELOW = ("/static-offline-docs/", "/internal/")  # what /docs loads; what workers ask, by a token of their own
METRICS = "/metrics"
NOBODY = Caller(scopes=frozenset())


class Door:
    """Decides who may come in.

    Args:
        keyring: the keys.
        signer: knows the links that carry a key's leave.
        is_loopback: whether only this machine can reach the gateway; as long as there are no keys, it may ask for all.
        allowed_hosts: names by which the gateway may be called besides this machine's own, while there are no keys.
        open_metrics: whether `/metrics` asks for no key.
    """

    def __init__(
        self, keyring: Keyring, signer: Signer, *, is_loopback: bool, allowed_hosts: Collection[str], open_metrics: bool
    ) -> None:
        self._keyring = keyring
        self._signer = signer
        self._is_loopback = is_loopback
        self._allowed_hosts = allowed_hosts
        self._open = OPEN | ({METRICS} if is_loopback or open_metrics else set())

    async def caller(self, scope: Scope) -> Caller:
        """Return who asks; a signature is taken out of the query.

        Raises:
            InvalidSignature: the link is signed, and not for this or not any more.
            WrongHost: no key is asked for, and a page of another server may be asking.
            InvalidKey: one is, and there is none that is valid.
            InsufficientScope: the metrics are for admins.
            KeysUnavailable: the database does not answer.
        """
        path = scope["path"]
        if path in PROBES:
            return NOBODY
        signed_by = self._signer.verify(scope)
        if self._is_loopback and not await self._keyring.is_used():
            self._check_host(header(scope, b"host"))
            return Caller()
        if path in self._open or path.startswith(OPEN_BELOW):
            return NOBODY
        if signed_by is not None:
            return (await self._keyring.holder(signed_by)).caller
        caller = (await self._keyring.find(offered(scope))).caller
        if path == METRICS:
            check_scope(caller, "admin")
        return caller

    def _check_host(self, header: str) -> None:
        """Refuse a name that another server's pages could have been given for this machine (DNS rebinding)."""
        host = host_of(header)
        if not is_loopback(host) and host not in self._allowed_hosts:
            raise WrongHost(
                "as long as there are no keys, the gateway is called localhost or 127.0.0.1; "
                "the operator adds names with ATELIER_ALLOWED_HOSTS"
            )


class Authentication:
    """Says who asks, or refuses; a browser's question before its request (CORS) is answered further out."""

    def __init__(self, app: ASGIApp, door: Callable[[], Door]) -> None:
        """Wrap `app`; the door is there once the application has started."""
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            scope["caller"] = await self._door().caller(scope)
        except GatewayError as error:
            await render(error)(scope, receive, send)
            return
        if scope["caller"].log_content is not None:
            scope["content"].kept = scope["caller"].log_content
        if scope["caller"].id and header(scope, b"x-request-id") == scope["request_id"]:
            # Receipts and reservations go by it: nobody may choose another's.
            scope["request_id"] += f"-{token_hex(8)}"
            request_id.set(scope["request_id"])
        await self._app(scope, receive, send)


def offered(scope: Scope) -> str:
    """Return the key that a request carries.

    Raises:
        InvalidKey: it carries none.
    """
    scheme, _, key = header(scope, b"authorization").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    if key := header(scope, b"x-api-key").strip():
        return key
    raise InvalidKey("a key is needed: send it as 'Authorization: Bearer atl_...' or as 'x-api-key'")


def check_scope(caller: Caller, scope: str) -> None:
    """Refuse a caller who may not.

    Raises:
        InsufficientScope: so it is.
    """
    if scope not in caller.scopes:
        raise InsufficientScope(f"this needs a key with the scope '{scope}'")


async def only_admins(request: Request) -> None:
    """Keep others from a route; async, as FastAPI gives a plain function a thread."""
    check_scope(request.scope["caller"], "admin")


def host_of(header: str) -> str:
    """Return the name in a `Host` header, without port and brackets, in lower case."""
    host = header.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def is_loopback(host: str) -> bool:
    """Whether a name or an address means this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
