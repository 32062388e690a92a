"""Lets no body grow beyond a limit, and reads multipart ones."""

from collections.abc import Mapping

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.errors import InvalidRequest, PayloadTooLarge, render

FIELDS_ALLOWANCE = 64_000  # bytes for what surrounds the file


async def read_form(request: Request, file_field: str, max_bytes: int) -> tuple[bytes, Mapping[str, str]]:
    """Return the file in `file_field` and the other fields.

    Raises:
        PayloadTooLarge: the body is longer than `max_bytes` and a little; no more of it than that is read, and nothing
            where its length is announced.
        InvalidRequest: no multipart body, no such file, or a second one.
        ClientDisconnect: the caller left.
    """
    receive = limited(request, max_bytes + FIELDS_ALLOWANCE)
    try:
        async with Request(request.scope, receive).form(max_files=1, max_part_size=FIELDS_ALLOWANCE) as form:
            upload = form.get(file_field)
            if not isinstance(upload, UploadFile):
                raise InvalidRequest(f"send a multipart form with a file in '{file_field}'", param=file_field)
            return await upload.read(), {name: value for name, value in form.items() if isinstance(value, str)}
    except HTTPException as error:
        raise InvalidRequest(f"the multipart form cannot be read: {error.detail}", param=file_field) from error


def limited(request: Request, max_bytes: int) -> Receive:
    """Return the request's `receive`, raising once it is sure that more than `max_bytes` of body come.

    Raises:
        PayloadTooLarge: here, or from what is returned.
    """
    complaint = f"the upload is larger than {max_bytes} bytes"
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise PayloadTooLarge(complaint)
    num_bytes = 0

    async def receive_limited() -> Message:
        nonlocal num_bytes
        message = await request.receive()
        num_bytes += len(message.get("body", b""))
        if num_bytes > max_bytes:
            raise PayloadTooLarge(complaint)
        return message

    return receive_limited


class BodyLimit:
    """Answers 413 to a body that is too long for any of a worker's routes: BentoML itself takes all that comes."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        """Wrap `app`; bodies may have `max_bytes`."""
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refused: PayloadTooLarge | None = None
        has_started = False

        async def receive_limited() -> Message:
            nonlocal refused
            try:
                return await within()
            except PayloadTooLarge as error:
                refused = error
                raise

        async def send_unless_refused(message: Message) -> None:
            # BentoML has made a 500 of it.
            nonlocal has_started
            if refused is None or has_started:
                has_started = True
                await send(message)

        try:
            within = limited(Request(scope, receive), self._max_bytes)
            await self._app(scope, receive_limited, send_unless_refused)
        except PayloadTooLarge as error:
            refused = error
        if refused is not None and not has_started:
            response = render(refused)
            response.headers["connection"] = "close"  # the rest of the body is not read
            await response(scope, receive, send)
