"""Webhooks: one attempt to say that something has ended, signed; who tries again, and when, is the caller's affair.

The signature is that of the Standard Webhooks specification and of OpenAI: `client.webhooks.unwrap()` verifies it. Each
key has a secret of its own, made from that of the gateways: nothing has to be kept, and no key can sign for another.
"""

import base64
import hashlib
import hmac
import json
import time
from asyncio import timeout
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import httpx

from gateway.errors import UrlNotAllowed

SECONDS = 15.0  # that an attempt may take
CONNECT_SECONDS = 5.0
DELAYS = (5, 60, 300, 1800, 7200, 18_000, 36_000, 50_400)  # seconds after the first, second, … attempt; 32 h in all
MAX_DELAY = 86_400  # seconds that a receiver may ask for
GONE = 410
USER_AGENT = "Atelier"


@dataclass(frozen=True)
class WebhookEvent:
    """What is told: `event_of` makes one."""

    id: str
    """The same in every attempt: receivers know a repetition by it."""
    type: str
    """Such as `video.completed`."""
    created_at: int
    """Seconds since the epoch."""
    subject: str
    """The id of what has ended."""

    @property
    def body(self) -> bytes:
        """In OpenAI's shape."""
        said = {"id": self.id, "object": "event", "created_at": self.created_at, "type": self.type}
        return json.dumps({**said, "data": {"id": self.subject}}, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Outcome:
    """What came of an attempt."""

    is_delivered: bool
    again_in: float | None
    """Seconds; None: no more."""
    said: str
    """For the log: a status, or what went wrong."""


class Webhooks:
    """Signs and delivers."""

    def __init__(self, transport: httpx.AsyncBaseTransport, secret: bytes, *others: bytes) -> None:
        """Ask over `transport`, that of `gateway.outside`, which keeps no cookies; gateways share the secrets.

        All sign, so that a receiver may verify with what one of the `others` has told it; callers are told the first.
        """
        self._transport = transport
        self._secrets = (secret, *others)

    def secret_of(self, caller_id: str) -> str:
        """The secret that a caller verifies with: `whsec_` and base64."""
        return "whsec_" + base64.b64encode(key_of(self._secrets[0], caller_id)).decode()

    async def attempt(self, url: str, caller_id: str, event: WebhookEvent, num_tries: int) -> Outcome:
        """Try once; nothing is raised for what the other side does.

        Args:
            url: where to; it may have been checked long ago.
            caller_id: whose secret signs.
            event: what is told.
            num_tries: attempts so far, this one included.
        """
        headers = self._headers(caller_id, event)
        patience = {"timeout": httpx.Timeout(SECONDS, connect=CONNECT_SECONDS).as_dict()}
        try:
            request = httpx.Request("POST", url, content=event.body, headers=headers, extensions=patience)
            async with timeout(SECONDS):
                answer = await self._transport.handle_async_request(request)
                await answer.aclose()  # what it says is nobody's business
        except (UrlNotAllowed, httpx.InvalidURL) as error:
            return Outcome(False, None, str(error))
        except (httpx.HTTPError, TimeoutError) as error:
            return Outcome(False, delay(num_tries), type(error).__name__)
        said = str(answer.status_code)
        if answer.is_success:
            return Outcome(True, None, said)
        if answer.status_code == GONE:
            return Outcome(False, None, said)
        return Outcome(False, delay(num_tries, answer.headers.get("retry-after", "")), said)

    def _headers(self, caller_id: str, event: WebhookEvent) -> dict[str, str]:
        sent_at = str(int(time.time()))
        signed = f"{event.id}.{sent_at}.".encode() + event.body
        keys = [key_of(secret, caller_id) for secret in self._secrets]
        signatures = [base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode() for key in keys]
        return {
            "content-type": "application/json",
            "user-agent": USER_AGENT,
            "webhook-id": event.id,
            "webhook-timestamp": sent_at,
            "webhook-signature": " ".join(f"v1,{each}" for each in signatures),
        }


def key_of(secret: bytes, caller_id: str) -> bytes:
    """What signs for a caller."""
    return hmac.new(secret, b"webhooks\0" + caller_id.encode(), hashlib.sha256).digest()


def event_of(kind: str, subject: str, created_at: int) -> WebhookEvent:
    """Return the event that says that `subject` has ended, always the same.

    Args:
        kind: such as `video.completed`.
        subject: the id of what has ended.
        created_at: when, in seconds since the epoch.
    """
    name = hashlib.sha256(f"{kind}\0{subject}\0{created_at}".encode()).hexdigest()
    return WebhookEvent(f"evt_{name[:32]}", kind, created_at, subject)


def delay(num_tries: int, retry_after: str = "") -> float | None:
    """Seconds until the next attempt; None: there is none.

    Args:
        num_tries: attempts so far.
        retry_after: the header of the last answer: it may ask for more, not for less.
    """
    if num_tries > len(DELAYS):
        return None
    return max(float(DELAYS[num_tries - 1]), min(seconds_of(retry_after), MAX_DELAY))


def seconds_of(retry_after: str) -> float:
    """Read a `Retry-After`: seconds or a date; 0: it is neither."""
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after[:9])
    try:
        return parsedate_to_datetime(retry_after).timestamp() - time.time()
    except (ValueError, OverflowError):  # the latter: of a year beyond all calendars
        return 0.0
