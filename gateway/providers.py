"""Outside model servers: OpenAI, Azure OpenAI, and whatever else speaks OpenAI's HTTP. Our key goes to them alone."""

from collections.abc import Mapping
from typing import Any

import httpx
import pydantic_core
from pydantic import BaseModel, ValidationError

from gateway.bodies import form_with_model, with_members
from gateway.breaker import Breaker
from gateway.errand import Declined, Errand
from gateway.errors import CallerLeft, GatewayError, ProviderBusy, ProviderFailed, ProviderResting, WorkerRefused
from gateway.provider_file import Entry
from gateway.refusals import RETRY_AFTER, refusal
from gateway.transport import UNSENT
from gateway.waiting import Patience

CALLERS_FAULT = frozenset({400, 413, 415, 422})  # what a provider says about the body, the caller may read
WITHOUT_DEPLOYMENT = frozenset({"/responses"})  # of Azure's routes
TELL_IF_ASKED = frozenset({"/chat/completions", "/completions"})  # what a stream took
ADDED_USAGE = "atelier.added_usage"  # extension of a response: the caller did not ask for it


class Provider:
    """One model of one outside server."""

    def __init__(self, entry: Entry, transport: httpx.AsyncBaseTransport, connect_timeout: float) -> None:
        """Ask for what `entry` says over `transport`; the time until there is a connection is in seconds."""
        self.id, self.task, self.fallbacks = entry.id, entry.task, entry.fallbacks
        self._entry = entry
        self._transport = transport
        self._extensions = {"timeout": {"connect": connect_timeout, "pool": connect_timeout}}
        self._breaker = Breaker()

    async def open(self, errand: Errand) -> httpx.Response:
        """Send, and return a success whose body has not been read.

        Raises:
            Declined: it was not sent, or refused with 429 or 5xx.
            ProviderFailed: it hung up or kept silent, and may have worked on it; or refused the operator's key.
            WorkerRefused: something in the body does not fit.
            CallerLeft: nobody waits any more.
        """
        if not self._breaker.admit():
            raise Declined(self._resting())
        request, adds_usage = self._request(errand)
        late = ProviderFailed("the provider does not answer")
        try:
            async with Patience(errand.seconds_left, late) as patience:
                patience.unless(errand.left)
                upstream = await self._transport.handle_async_request(request)
                upstream.extensions[ADDED_USAGE] = adds_usage
                refused = None if upstream.is_success else await self._refused(upstream, errand.renamed)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            if not isinstance(
                error, httpx.PoolTimeout
            ):  # where all our own connections are at work, it is not to blame
                self._breaker.failed()
            raise Declined(nothing_made("the provider does not answer")) from error
        except httpx.TransportError as error:
            self._breaker.failed()
            raise ProviderFailed("the provider does not answer") from error
        except (ProviderFailed, CallerLeft) as error:
            if error is late:
                self._breaker.failed()
            error.nothing_was_made = UNSENT in request.extensions
            raise
        if refused:
            raise refused
        self._breaker.succeeded()
        return upstream

    def _request(self, errand: Errand) -> tuple[httpx.Request, bool]:
        """What is sent, and whether it asks for the usage where the caller does not."""
        path = errand.path.removeprefix("/v1")
        entry = self._entry
        url = f"{entry.base_url.rstrip('/')}{path}"
        if entry.kind == "azure":
            place = "" if path in WITHOUT_DEPLOYMENT else f"/deployments/{entry.upstream}"
            url = f"{entry.base_url.rstrip('/')}/openai{place}{path}?api-version={entry.api_version}"
        headers = [
            (b"accept", errand.accept.encode("latin-1")),
            (b"accept-encoding", b"identity"),
            *self._credentials(),
        ]
        if "content" not in errand.body:
            form = form_with_model(errand.body, entry.upstream)
            return httpx.Request("POST", url, headers=headers, extensions=self._extensions, **form), False
        content, adds_usage = self._content(errand)
        headers.append((b"content-type", b"application/json"))
        request = httpx.Request("POST", url, headers=headers, content=content, extensions=self._extensions)
        return request, adds_usage

    def _content(self, errand: Errand) -> tuple[bytes, bool]:
        """The caller's body with the server's name of the model, and whether it asks for the usage besides."""
        content: bytes = errand.body["content"]
        changes: dict[str, Any] = {"model": self._entry.upstream}
        if self._entry.asks_for_usage and errand.path.removeprefix("/v1") in TELL_IF_ASKED and b'"stream"' in content:
            body = pydantic_core.from_json(content)
            options = body.get("stream_options") or {}
            if body.get("stream") is True and isinstance(options, dict) and options.get("include_usage") is not True:
                changes["stream_options"] = {**options, "include_usage": True}
        return with_members(content, changes), "stream_options" in changes

    def _credentials(self) -> list[tuple[bytes, bytes]]:
        key = self._entry.key.get_secret_value().encode()
        if not key:
            return []
        return [(b"api-key", key)] if self._entry.kind == "azure" else [(b"authorization", b"Bearer " + key)]

    async def _refused(self, upstream: httpx.Response, renamed: Mapping[str, str]) -> Exception:
        """Read a provider's error: what the operator must see to is no business of the caller's."""
        said = await refusal(upstream, renamed, "provider")
        status = upstream.status_code
        failed = nothing_made(f"the provider answered {status}")
        if status == ProviderBusy.status:
            busy = ProviderBusy("the provider takes no more for now; try again later")
            busy.retry_after = said.retry_after
            return Declined(busy)
        if status >= 500:
            self._breaker.failed()
            return Declined(failed)
        self._breaker.succeeded()  # it answers
        return self._without_key(said) if status in CALLERS_FAULT else failed

    def _without_key(self, said: WorkerRefused) -> GatewayError:
        key = self._entry.key.get_secret_value()
        if key and key in f"{said} {said.code} {said.param}":
            return ProviderFailed(f"the provider answered {said.status}")
        return said

    def _resting(self) -> ProviderResting:
        resting = ProviderResting("the provider has failed again and again; try again later")
        resting.retry_after = max(RETRY_AFTER, round(self._breaker.seconds_left))
        return resting


def nothing_made(sentence: str) -> ProviderFailed:
    """A failure that came instead of the work."""
    failed = ProviderFailed(sentence)
    failed.nothing_was_made = True
    return failed


class Message(BaseModel):
    """The part of a choice that is read."""

    content: str


class Choice(BaseModel):
    """The part of a completion that is read."""

    message: Message


class Completion(BaseModel):
    """A chat completion, as far as it is read."""

    choices: list[Choice]


def text_of(completion: bytes) -> str:
    """What the first choice of a chat completion says.

    Raises:
        ProviderFailed: it is no chat completion.
    """
    try:
        return Completion.model_validate_json(completion).choices[0].message.content
    except (ValidationError, IndexError) as error:
        raise ProviderFailed("the provider's answer is no chat completion") from error
