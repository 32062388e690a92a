"""Pictures that callers name instead of sending them: data URLs, and, where the operator allows it, links.

A link is followed through the guard of `outside.py`, redirect by redirect: each leads to a public address, or nowhere.
"""

import asyncio
import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
from fastapi.exceptions import RequestValidationError

from gateway.errors import PayloadTooLarge, PictureNotFetched, UrlNotAllowed

SECONDS = 15.0  # for a picture, with all redirects
CONNECT_SECONDS = 5.0
MAX_REDIRECTS = 3
DATA = re.compile(r"data:image/[\w.+-]{1,40};base64,", re.IGNORECASE)
LINK = re.compile("https?:", re.IGNORECASE)
IMAGES = "image[]"  # in a form, a client with a list of pictures calls each so
MAX_FILES = 20  # beyond what any client sends: the worker says which are too many
File = tuple[str, tuple[str, bytes]]  # of a form, as httpx takes it
HEADERS = {"accept": "image/*", "accept-encoding": "identity", "user-agent": "Atelier"}


class Pictures:
    """Reads what callers name."""

    def __init__(self, transport: httpx.AsyncBaseTransport, *, follows_links: bool, max_bytes: int) -> None:
        """Fetch over `transport`, that of `gateway.outside`, which keeps no cookies; at most `max_bytes` each."""
        self._transport = transport
        self._follows_links = follows_links
        self._max_bytes = max_bytes

    async def read(self, named: object, param: str) -> bytes:
        """Return the picture that a URL, or OpenAI's object with one in `image_url`, leads to.

        Args:
            named: as it stands in a body.
            param: where.

        Raises:
            UrlNotAllowed: it is no URL, or one that may not be asked.
            PictureNotFetched: nobody gave it out in time.
            PayloadTooLarge: it is too large.
        """
        url = named.get("image_url") if isinstance(named, Mapping) else named
        if not isinstance(url, str):
            raise UrlNotAllowed("must be a URL, or an object with one in 'image_url'; files have no ids here", param)
        if data := DATA.match(url):
            return self._decoded(url[data.end() :], param)
        if not is_link(url):
            raise UrlNotAllowed("must be a data URL of a picture in base64, or an http or https URL", param)
        if not self._follows_links:
            raise UrlNotAllowed(
                "links to pictures are not followed here; send the picture itself, as a file or in base64 "
                "(the operator allows links with ATELIER_IMAGE_URLS)",
                param,
            )
        try:
            async with asyncio.timeout(SECONDS):
                return await self._fetched(url, param)
        except UrlNotAllowed as error:
            raise UrlNotAllowed(error.sentence, param) from error
        except httpx.InvalidURL as error:
            raise UrlNotAllowed("this is no URL", param) from error
        except httpx.HTTPError as error:
            raise PictureNotFetched("the picture's server cannot be reached, or broke off", param) from error
        except TimeoutError as error:
            raise PictureNotFetched(f"the picture did not come within {SECONDS:g} seconds", param) from error

    async def files_of(self, given: dict[str, Any], *, needs_image: bool = True) -> list[File]:
        """Take out of an edit's JSON body the pictures that it names, and return them as the files of a form.

        Args:
            given: the body, as OpenAI has it: `images`, each with its `image_url`, and a `mask` like these.
            needs_image: whether there must be one to be drawn over.

        Raises:
            RequestValidationError: it names none, or too many.
            GatewayError: one of them cannot be had.
        """
        images, mask = given.pop("images", None), given.pop("mask", None)
        if images is None and not needs_image:
            images = []
        elif not isinstance(images, list) or not 0 < len(images) <= MAX_FILES:
            raise none_named()
        masks = [] if mask is None else [mask]
        names = [IMAGES] * len(images) + ["mask"] * len(masks)
        found = await self.read_all([*images, *masks], ["images"] * len(images) + ["mask"] * len(masks))
        return [(name, (name, picture)) for name, picture in zip(names, found, strict=True)]

    async def read_all(self, named: Sequence[object], params: Sequence[str]) -> list[bytes]:
        """Return several pictures, which together are as large as one may be.

        Raises:
            GatewayError: as `read`.
        """
        found: list[bytes] = []
        for each, param in zip(named, params, strict=True):
            found.append(await self.read(each, param))
            if sum(map(len, found)) > self._max_bytes:
                raise self._too_large(param)
        return found

    def _decoded(self, text: str, param: str) -> bytes:
        try:
            picture = base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise UrlNotAllowed("must be a data URL of a picture in base64", param) from error
        if len(picture) > self._max_bytes:
            raise self._too_large(param)
        return picture

    async def _fetched(self, url: str, param: str) -> bytes:
        for _ in range(1 + MAX_REDIRECTS):
            patience = httpx.Timeout(SECONDS, connect=CONNECT_SECONDS).as_dict()
            request = httpx.Request("GET", url, headers=HEADERS, extensions={"timeout": patience})
            answer = await self._transport.handle_async_request(request)
            try:
                if not answer.has_redirect_location:
                    return await self._body(answer, param)
                url = str(request.url.join(answer.headers["location"]))
            except httpx.InvalidURL as error:
                raise PictureNotFetched("the picture's server sends us to what is no URL", param) from error
            finally:
                await answer.aclose()
        raise PictureNotFetched(f"there are more than {MAX_REDIRECTS} redirects on the way to the picture", param)

    async def _body(self, answer: httpx.Response, param: str) -> bytes:
        if answer.status_code != httpx.codes.OK:
            raise PictureNotFetched(f"the picture's server answered {answer.status_code}", param)
        if answer.headers.get("content-encoding", "identity").lower() != "identity":
            raise PictureNotFetched("the picture's server sends it compressed, which was not asked for", param)
        announced = answer.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self._max_bytes:
            raise self._too_large(param)
        picture = bytearray()
        async for piece in answer.aiter_raw():
            picture += piece
            if len(picture) > self._max_bytes:
                raise self._too_large(param)
        return bytes(picture)

    def _too_large(self, param: str) -> PayloadTooLarge:
        return PayloadTooLarge(f"{param}: pictures may have {self._max_bytes} bytes")


def none_named() -> RequestValidationError:
    """What is wrong with the `images` of an edit."""
    sentence = f"must be a list of 1 to {MAX_FILES} pictures, or send a multipart form with files"
    return RequestValidationError([{"type": "value_error", "loc": ("body", "images"), "msg": sentence, "input": None}])


def is_link(named: object) -> bool:
    """Whether a picture is named by an http or https URL."""
    return isinstance(named, str) and LINK.match(named) is not None
