"""Reads a multipart body without letting it grow beyond a limit."""

from collections.abc import Mapping

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message, Receive

from services.errors import InvalidRequest, PayloadTooLarge

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
