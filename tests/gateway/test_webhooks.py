"""Webhooks as a receiver sees them, and what callers cannot send us to."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import InvalidWebhookSignatureError, OpenAI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.errors import UrlNotAllowed
from gateway.jobs.webhooks import DELAYS, MAX_DELAY, Outcome, Webhooks, delay, event_of
from gateway.outside import Guard, GuardedTransport
from tests.gateway.conftest import LONG, Gateway, served

LOOPBACK = Guard([ip_network("127.0.0.0/8")])
SECRET = b"of all gateways, and never told"
EVENT = event_of("video.completed", "video_1", 1_790_000_000)


@dataclass
class Receiver:
    """Keeps what comes, and answers what the test wants."""

    answer: Response = field(default_factory=Response)
    came: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""

    async def take(self, request: Request) -> Response:
        self.came.append((dict(request.headers), await request.body()))
        return self.answer


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    with served(Starlette(routes=[Route("/{path:path}", receiver.take, methods=["POST", "GET"])])) as url:
        receiver.url = f"{url}/hook"
        yield receiver


def deliver(
    url: str, caller_id: str = "key_a", num_tries: int = 1, guard: Guard = LOOPBACK, *secrets: bytes
) -> Outcome:
    async def attempt() -> Outcome:
        async with GuardedTransport(guard) as transport:
            return await Webhooks(transport, *(secrets or [SECRET])).attempt(url, caller_id, EVENT, num_tries)

    return asyncio.run(attempt())


def secret_of(caller_id: str) -> str:
    return Webhooks(httpx.AsyncHTTPTransport(), SECRET).secret_of(caller_id)


def test_one_secret_may_follow_the_other(receiver: Receiver) -> None:
    deliver(receiver.url, "key_a", 1, LOOPBACK, b"that follows", SECRET)
    ((headers, body),) = receiver.came
    told = Webhooks(httpx.AsyncHTTPTransport(), b"that follows", SECRET).secret_of("key_a")

    assert told != secret_of("key_a")
    for secret in (told, secret_of("key_a")):
        event: Any = OpenAI(api_key="none", webhook_secret=secret).webhooks.unwrap(body, headers)
        assert event.data.id == "video_1"


def test_the_sdk_verifies_and_reads_it(receiver: Receiver) -> None:
    assert deliver(receiver.url) == Outcome(True, None, "200")
    ((headers, body),) = receiver.came
    sdk = OpenAI(api_key="none", webhook_secret=secret_of("key_a"))

    event: Any = sdk.webhooks.unwrap(body, headers)
    assert (event.type, event.data.id, event.created_at) == ("video.completed", "video_1", 1_790_000_000)
    assert event.id == headers["webhook-id"]
    with pytest.raises(InvalidWebhookSignatureError):
        sdk.webhooks.unwrap(body.replace(b"video_1", b"video_2"), headers)
    with pytest.raises(InvalidWebhookSignatureError):
        sdk.webhooks.unwrap(body, headers, secret=secret_of("key_b"))


def test_a_repetition_is_known_by_its_id(receiver: Receiver) -> None:
    for num_tries in (1, 2):
        deliver(receiver.url, num_tries=num_tries)
    first, second = receiver.came

    assert first[0]["webhook-id"] == second[0]["webhook-id"]
    assert first[1] == second[1]
    others = [event_of("video.failed", "video_1", 1_790_000_000), event_of("video.completed", "video_1", 1_790_000_001)]
    assert EVENT.id not in {other.id for other in others}


@pytest.mark.parametrize(
    ("status", "again_in"), [(204, None), (410, None), (302, 5), (404, 5), (500, 5), (429, 5)], ids=str
)
def test_only_what_could_get_better_is_repeated(receiver: Receiver, status: int, again_in: float | None) -> None:
    receiver.answer = Response(status_code=status, headers={"location": "/elsewhere"})

    assert deliver(receiver.url) == Outcome(status == 204, again_in, str(status))
    assert len(receiver.came) == 1  # a redirect is not followed


def test_who_asks_for_time_gets_it_within_reason(receiver: Receiver) -> None:
    for asked, expected in (("120", 120), ("1", DELAYS[0]), ("99999999", MAX_DELAY), ("soon", DELAYS[0])):
        receiver.answer = Response(status_code=503, headers={"retry-after": asked})
        assert deliver(receiver.url).again_in == expected
    for date in ("Wed, 21 Oct 2015 07:28:00 GMT", "Mon, 01 Jan 99999999999 00:00:00 GMT", f"1 Jan 2020 0:00 +{10**14}"):
        assert delay(1, date) == DELAYS[0]


def test_attempts_get_rarer_and_end() -> None:
    waits = [delay(num_tries) for num_tries in range(1, len(DELAYS) + 2)]

    assert waits[:-1] == sorted(DELAYS)
    assert waits[-1] is None


def test_a_receiver_that_is_not_there_is_tried_again() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        outcome = deliver(f"http://127.0.0.1:{unused.getsockname()[1]}/")

    assert outcome == Outcome(False, DELAYS[0], "ConnectError")


@pytest.mark.parametrize("host", ["a..b", f"{'a' * 64}.test"])
def test_a_name_that_no_host_can_have_is_a_receiver_that_is_not_there(host: str) -> None:
    assert deliver(f"http://{host}/") == Outcome(False, DELAYS[0], "ConnectError")


def test_a_redirect_to_what_is_no_name_is_an_answer(receiver: Receiver) -> None:
    receiver.answer = Response(status_code=302, headers={"location": "http://xn--a/"})

    assert deliver(receiver.url) == Outcome(False, DELAYS[0], "302")


def test_a_receiver_that_hangs_up_is_tried_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def hang_up() -> None:
            connection, _ = listening.accept()
            connection.recv(1)
            connection.close()

        answering = threading.Thread(target=hang_up)
        answering.start()
        outcome = deliver(f"http://127.0.0.1:{listening.getsockname()[1]}/")
        answering.join(LONG)

    assert (outcome.is_delivered, outcome.again_in) == (False, DELAYS[0])


def test_each_key_has_a_secret_of_its_own_that_outlives_the_gateway(
    start: Callable[..., Gateway], tmp_path: Path
) -> None:
    def secret(gateway: Gateway, **headers: str) -> str:
        answer = gateway.client.get("/v1/webhooks/secret", headers=headers)
        assert answer.status_code == 200
        told: str = answer.json()["secret"]
        return told

    first = start()
    nobodys = secret(first)
    key = first.client.post("/v1/keys", json={"owner": "someone", "scopes": ["admin"]}).json()["key"]
    someones = secret(first, authorization=f"Bearer {key}")
    first.close()

    assert nobodys.startswith("whsec_")
    assert nobodys != someones
    assert secret(start(), authorization=f"Bearer {key}") == someones


# --- what callers may name ---


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "0", "[::ffff:7f00:1]"])
def test_whatever_it_is_called_this_machine_is_not_asked(receiver: Receiver, host: str) -> None:
    outcome = deliver(receiver.url.replace("127.0.0.1", host), guard=Guard())

    assert (outcome.is_delivered, outcome.again_in) == (False, None)
    assert "address" in outcome.said
    assert receiver.came == []


def test_a_name_is_judged_by_where_it_leads_at_that_moment(receiver: Receiver) -> None:
    url = receiver.url.replace("127.0.0.1", "localhost")
    Guard().check(url)  # nothing to be seen yet

    assert not deliver(url, guard=Guard()).is_delivered
    assert deliver(url, guard=Guard([ip_network("127.0.0.1/32"), ip_network("::1/128")])).is_delivered


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.1",
     "255.255.255.255", "224.0.0.1", "239.1.1.1", "240.0.0.1", "192.0.2.1", "::", "::1", "fe80::1", "fe80::1%lo",
     "fd00:ec2::254", "fec0::1", "ff02::1", "::ffff:10.0.0.1", "::10.0.0.1", "64:ff9b::10.0.0.1",
     "64:ff9b::169.254.169.254", "64:ff9b:1::1", "2002:a00:1::1", "2002:7f00:1::", "2001:db8::1", "2001::1"],
)  # fmt: skip
def test_what_is_not_public_is_not_named(address: str) -> None:
    assert not Guard().may_reach(ip_address(address))


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::1.1.1.1"]
)
def test_what_is_public_is(address: str) -> None:
    assert Guard().may_reach(ip_address(address))


def test_the_operator_may_open_a_network_and_no_more() -> None:
    guard = Guard([ip_network("10.1.0.0/16")])

    assert guard.may_reach(ip_address("10.1.2.3"))
    assert guard.may_reach(ip_address("::ffff:10.1.2.3"))
    assert not guard.may_reach(ip_address("10.2.0.1"))


@pytest.mark.parametrize(
    "url",
    ["", "hook", "//host/hook", "ftp://host/", "file:///etc/passwd", "http://", "http://user@host/", "http://a:b@host/",
     "http://host:99999/", "http://[::1/", "http://169.254.169.254/latest", "https://[fd00::1]:8443/", "http://a b/",
     "http://host/\n", f"http://host/{'a' * 2000}"],
)  # fmt: skip
def test_a_url_that_could_never_be_asked_is_refused_at_once(url: str) -> None:
    with pytest.raises(UrlNotAllowed) as caught:
        Guard().check(url, "webhook_url")

    assert (caught.value.status, caught.value.param) == (400, "webhook_url")
    assert str(caught.value).startswith("webhook_url: ")


@pytest.mark.parametrize("url", ["https://example.com/hook?a=b", "http://example.com:8080", "https://93.184.216.34/"])
def test_a_url_of_the_world_passes(url: str) -> None:
    Guard().check(url)
