"""Lets no body grow beyond a limit, and reads multipart ones."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType

from pydantic import ValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.errors import InvalidRequest, NotJson, PayloadTooLarge, render
from services.schema import explain

FIELDS_ALLOWANCE = 64_000  # bytes for what surrounds the file


MAX_IN_LIST = 16  # files of one field that are taken in, so that it can be said that they are too many


async def read_form(
    request: Request, file_fields: Sequence[str], max_bytes: int, lists: Mapping[str, str] = MappingProxyType({})
) -> tuple[Mapping[str, bytes], Mapping[str, str]]:
    """Return the files that came, by field, and the other fields.

    Args:
        request: whose body is a multipart form.
        file_fields: which fields are files, the most important first.
        max_bytes: all files together.
        lists: other names of file fields, under which clients send a list of files: it may have one.

    Raises:
        PayloadTooLarge: the body is longer than `max_bytes` and a little; no more of it than that is read, and nothing
            where its length is announced.
        InvalidRequest: no multipart body, a file field that is no file, or several files where one is wanted.
        ClientDisconnect: the caller left.
    """
    receive = limited(request, max_bytes + FIELDS_ALLOWANCE, file_fields[0])
    try:
        async with Request(request.scope, receive).form(
            max_files=len(file_fields) + MAX_IN_LIST, max_part_size=FIELDS_ALLOWANCE
        ) as form:
            names = {**{field: field for field in file_fields}, **lists}
            files: dict[str, bytes] = {}
            for name, upload in form.multi_items():
                field = names.get(name)
                if field is None:
                    continue
                if not isinstance(upload, UploadFile):
                    raise InvalidRequest(f"{field}: must be a file; give the part a filename", param=field)
                if field in files:
                    raise InvalidRequest(f"{field}: one file is all that the models here work on", param=field)
                files[field] = await upload.read()
            return files, {name: text_of(value) for name, value in form.items() if name not in names}
    except HTTPException as error:
        raise InvalidRequest(f"the multipart form cannot be read: {error.detail}", param=file_fields[0]) from error


@contextmanager
def naming_the_field() -> Iterator[None]:
    """Say which of a form's fields does not fit, as it is or for the model that is asked.

    Raises:
        InvalidRequest: one does not.
    """
    try:
        yield
    except ValidationError as error:
        message, field = explain(error.errors()[0])
        raise InvalidRequest(message, param=field) from error


def missing(file_field: str) -> InvalidRequest:
    """What is said to whoever left out a file that is needed."""
    return InvalidRequest(f"send a multipart form with a file in '{file_field}'", param=file_field)


def text_of(value: UploadFile | str) -> str:
    """Return a field's text; a file in its place has none, and so its field is refused by its name."""
    return value if isinstance(value, str) else ""


def limited(request: Request, max_bytes: int, field: str | None = None) -> Receive:
    """Return the request's `receive`, raising once it is sure that more than `max_bytes` of body come.

    Raises:
        PayloadTooLarge: here, or from what is returned.
    """
    complaint = f"the upload is larger than {max_bytes} bytes"
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise PayloadTooLarge(complaint, param=field)
    num_bytes = 0

    async def receive_limited() -> Message:
        nonlocal num_bytes
        message = await request.receive()
        num_bytes += len(message.get("body", b""))
        if num_bytes > max_bytes:
            raise PayloadTooLarge(complaint, param=field)
        return message

    return receive_limited


class JsonBodies:
    """Answers 415 to a body that is no JSON and 413 to one that is too long: BentoML itself takes all that comes."""

    def __init__(self, app: ASGIApp, max_bytes: int, forms: Collection[str] = ()) -> None:
        """Wrap `app`; bodies may have `max_bytes`, and the routes in `forms` look after theirs themselves."""
        self._app = app
        self._max_bytes = max_bytes
        self._forms = forms

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] in self._forms:
            await self._app(scope, receive, send)
            return
        media_type = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
        if scope["method"] == "POST" and media_type != "application/json":
            await render(NotJson("send JSON, with content-type: application/json"))(scope, receive, send)
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
