"""How often a key may ask and for how much at once, alone and with other gateways."""

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import AsyncExitStack
from typing import Any

import httpx
import openai
import pytest
from limits import RateLimitItem
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter
from redis.asyncio import Redis

from gateway.callers import Caller
from gateway.errors import RateLimited
from gateway.leases import MemoryLeases
from gateway.limits import RATE_HEADERS, Limits
from gateway.shared import RedisLeases
from tests.gateway.conftest import LONG, PNG, Gateway, Workers, error_of, opened
from tests.gateway.servers import RedisServer, redis_server
from tests.gateway.test_keys import ROOT, bearer, create

SPEECH = "/generate/audio?prompt=hello"
CHAT = {"model": "tinyllama-1.1b-chat", "messages": [{"role": "user", "content": "hello"}]}
GENERATIONS: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", "/generate/text?prompt=x", {}),
    ("GET", SPEECH, {}),
    ("GET", "/generate/image?prompt=x", {}),
    ("GET", "/generate/bentoml/image?prompt=x", {}),
    ("POST", "/generate/video", {"files": {"image": PNG}}),
    ("GET", "/generate/3d?prompt=x", {}),
    ("GET", "/generate/openai/text?prompt=x", {}),
    ("POST", "/v1/chat/completions", {"json": CHAT}),
    ("POST", "/v1/completions", {"json": {"prompt": "x"}}),
    ("POST", "/v1/responses", {"json": {"input": "x"}}),
]

Start = Callable[..., Gateway]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def admin(gateway: Gateway) -> str:
    return str(create(gateway, scopes=["admin"])["key"])


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


def key_of(gateway: Gateway, admin: str, **fields: Any) -> dict[str, str]:
    """The headers of a new key."""
    return bearer(create(gateway, admin, **fields)["key"])


def ask_until(gateway: Gateway, headers: dict[str, str], status: int) -> httpx.Response:
    """Ask again and again; give the first answer that is so."""
    give_up_at = time.monotonic() + LONG
    while (answer := gateway.client.get(SPEECH, headers=headers)).status_code != status:
        assert time.monotonic() < give_up_at, f"it is still {answer.status_code}"
    return answer


class TestScope:
    @pytest.mark.parametrize(("method", "path", "body"), GENERATIONS)
    def test_a_key_of_another_modality_is_refused(
        self, gateway: Gateway, workers: Workers, admin: str, method: str, path: str, body: dict[str, Any]
    ) -> None:
        refused = gateway.client.request(method, path, headers=bearer(admin), **body)
        assert (refused.status_code, error_of(refused)["code"]) == (403, "insufficient_scope")
        assert workers.requests == []

    @pytest.mark.parametrize(("method", "path", "body"), GENERATIONS)
    def test_a_key_of_another_model_is_refused(
        self, gateway: Gateway, workers: Workers, admin: str, method: str, path: str, body: dict[str, Any]
    ) -> None:
        refused = gateway.client.request(method, path, headers=key_of(gateway, admin, models=["other"]), **body)
        assert (refused.status_code, error_of(refused)["code"]) == (403, "model_not_allowed")
        assert error_of(refused)["param"] == "model"
        assert workers.requests == []

    def test_a_key_of_the_tasks_first_model_may_leave_it_out(self, gateway: Gateway, admin: str) -> None:
        headers = key_of(gateway, admin, scopes=["audio"], models=["letters"])
        assert gateway.client.get(SPEECH, headers=headers).status_code == 200

    def test_the_model_that_is_named_counts(self, gateway: Gateway, admin: str) -> None:
        for allowed, status in (("tinyllama-1.1b-chat", 200), ("gpt-4o-mini", 403)):
            headers = key_of(gateway, admin, models=[allowed])
            body = {**CHAT, "model": "tinyllama-1.1b-chat"}
            assert gateway.client.post("/v1/chat/completions", json=body, headers=headers).status_code == status


class TestRate:
    def test_one_too_many_is_told_when_to_come_back(self, gateway: Gateway, workers: Workers, admin: str) -> None:
        headers = key_of(gateway, admin, requests_per_minute=3)
        standings = [gateway.client.get(SPEECH, headers=headers) for _ in range(3)]
        assert [answer.status_code for answer in standings] == [200] * 3
        assert [answer.headers["x-ratelimit-remaining-requests"] for answer in standings] == ["2", "1", "0"]

        refused = gateway.client.get(SPEECH, headers=headers)

        assert refused.status_code == 429
        assert error_of(refused)["code"] == "rate_limit_exceeded"
        assert error_of(refused)["type"] == "rate_limit_error"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.headers["x-should-retry"] == "true"
        assert refused.headers["x-ratelimit-limit-requests"] == "3"
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert re.fullmatch(r"\d{1,2}s", refused.headers["x-ratelimit-reset-requests"])
        assert len(workers.requests) == 3

    def test_every_answer_of_a_limited_key_says_how_it_stands(self, gateway: Gateway, admin: str) -> None:
        headers = key_of(gateway, admin, requests_per_minute=3)
        for path, remaining in (("/v1/usage", "3"), (SPEECH, "2"), ("/no", "2"), ("/generate/audio", "2")):
            answer = gateway.client.get(path, headers=headers)
            assert answer.headers["x-ratelimit-remaining-requests"] == remaining
        assert not set(RATE_HEADERS) & set(gateway.client.get("/v1/usage", headers=bearer(admin)).headers)

    def test_keys_are_counted_apart(self, gateway: Gateway, admin: str) -> None:
        for _ in range(2):
            headers = key_of(gateway, admin, requests_per_minute=1)
            assert gateway.client.get(SPEECH, headers=headers).status_code == 200
            assert gateway.client.get(SPEECH, headers=headers).status_code == 429

    def test_the_official_sdk_knows_the_error(self, gateway: Gateway, admin: str) -> None:
        key = create(gateway, admin, requests_per_minute=1)["key"]
        gateway.client.get(SPEECH, headers=bearer(key))
        with (
            openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0) as client,
            pytest.raises(openai.RateLimitError),
        ):
            client.chat.completions.create(model="tinyllama-1.1b-chat", messages=[{"role": "user", "content": "hello"}])

    def test_browsers_elsewhere_may_read_the_standing(self, start: Start) -> None:
        gateway = start(cors_origins="https://ui.example")
        answer = gateway.client.get("/livez", headers={"origin": "https://ui.example"})
        assert set(RATE_HEADERS) <= set(answer.headers["access-control-expose-headers"].split(", "))


class TestStreams:
    """What is under way at once."""

    @pytest.fixture(params=["memory", "redis"])
    def gateway(self, request: pytest.FixtureRequest, start: Start) -> Gateway:
        url = request.getfixturevalue("redis").url if request.param == "redis" else ""
        return start(redis_url=url, redis_down="refuse")

    def test_a_place_is_free_again_when_its_stream_has_ended(
        self, gateway: Gateway, workers: Workers, admin: str
    ) -> None:
        headers = key_of(gateway, admin, concurrent_streams=2)
        gate: Future[None] = Future()

        async def answer(request: httpx.Request) -> httpx.Response:
            return workers.stream(b"first", opened(gate))

        workers.answer = answer
        with (
            gateway.client.stream("GET", SPEECH, headers=headers) as first,
            gateway.client.stream("GET", SPEECH, headers=headers) as second,
        ):
            assert (first.status_code, second.status_code) == (200, 200)
            refused = gateway.client.get(SPEECH, headers=headers)
            assert (refused.status_code, error_of(refused)["code"]) == (429, "rate_limit_exceeded")
            assert refused.headers["retry-after"] == "1"
            gate.set_result(None)
            first.read()
            second.read()
        gateway.metrics()  # when all others have ended
        assert gateway.client.get(SPEECH, headers=headers).status_code == 200

    @pytest.mark.parametrize("status", [200, 500, 400])
    def test_none_is_lost_however_a_request_ends(
        self, gateway: Gateway, workers: Workers, admin: str, status: int
    ) -> None:
        headers = key_of(gateway, admin, concurrent_streams=1)
        if status == 200:
            workers.streams_once(b"a", httpx.ReadError("killed"))
            with pytest.raises(httpx.RemoteProtocolError):
                gateway.client.get(SPEECH, headers=headers)
        else:
            workers.refuses_in_envelope(status, "no")
            assert gateway.client.get(SPEECH, headers=headers).status_code == status
        workers.answer = workers.answer_whole
        gateway.metrics()
        assert gateway.client.get(SPEECH, headers=headers).status_code == 200

    def test_none_is_lost_when_the_caller_leaves(self, gateway: Gateway, workers: Workers, admin: str) -> None:
        headers = key_of(gateway, admin, concurrent_streams=1)
        workers.never_answers()
        connection = gateway.connect()
        connection.request("GET", SPEECH, headers=headers)
        assert workers.is_asked.wait(LONG)
        assert gateway.client.get(SPEECH, headers=headers).status_code == 429
        connection.close()
        workers.answer = workers.answer_whole
        gateway.metrics()
        assert gateway.client.get(SPEECH, headers=headers).status_code == 200


class TestTwoGateways:
    NUM_CALLERS = 12

    def test_share_the_requests_of_a_minute_exactly(self, start: Start, redis: RedisServer, workers: Workers) -> None:
        both = [start(redis_url=redis.url) for _ in range(2)]
        admin = create(both[0], scopes=["admin"])["key"]
        headers = key_of(both[0], admin, requests_per_minute=50)

        def call(number: int) -> int:
            return both[number % 2].client.get(SPEECH, headers=headers).status_code

        with ThreadPoolExecutor(self.NUM_CALLERS) as pool:
            statuses = list(pool.map(call, range(120), timeout=LONG))
        assert (statuses.count(200), statuses.count(429)) == (50, 70)
        assert len(workers.requests) == 50

    def test_share_the_streams_of_a_key_exactly(self, start: Start, redis: RedisServer, workers: Workers) -> None:
        both = [start(redis_url=redis.url) for _ in range(2)]
        admin = create(both[0], scopes=["admin"])["key"]
        headers = key_of(both[0], admin, concurrent_streams=5)
        gate: Future[None] = Future()

        async def answer(request: httpx.Request) -> httpx.Response:
            return workers.stream(b"first", opened(gate))

        workers.answer = answer

        def call(number: int) -> int:
            return both[number % 2].client.get(SPEECH, headers=headers).status_code

        with ThreadPoolExecutor(self.NUM_CALLERS) as pool:
            calls = [pool.submit(call, number) for number in range(self.NUM_CALLERS)]
            ended = as_completed(calls, timeout=LONG)
            refused = [next(ended).result() for _ in range(self.NUM_CALLERS - 5)]
            gate.set_result(None)
            assert refused == [429] * (self.NUM_CALLERS - 5)
            assert [call.result() for call in ended] == [200] * 5


def test_who_may_not_begin_is_told_before_the_body(start: Start) -> None:
    gateway = start()
    admin = create(gateway, scopes=["admin"])["key"]
    limited = key_of(gateway, admin, requests_per_minute=1)
    assert gateway.client.get(SPEECH, headers=limited).status_code == 200
    for key, status in ((limited, 429), (key_of(gateway, admin, scopes=["audio"]), 403)):
        connection = gateway.connect()
        connection.putrequest("POST", "/v1/chat/completions")
        for name, value in {**key, "content-type": "application/json", "content-length": "1000"}.items():
            connection.putheader(name, value)
        connection.endheaders()  # and no body
        assert connection.getresponse().status == status


class TestDown:
    @pytest.fixture
    def own(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
        with redis_server(tmp_path_factory.mktemp("redis")) as server:
            yield server

    @pytest.mark.parametrize(("when_down", "status"), [("allow", 200), ("refuse", 503)])
    def test_what_cannot_be_counted_is_allowed_or_refused_as_set(
        self, start: Start, own: RedisServer, when_down: str, status: int, workers: Workers
    ) -> None:
        gateway = start(redis_url=own.url, redis_down=when_down)
        admin = create(gateway, scopes=["admin"])["key"]
        limited = key_of(gateway, admin, requests_per_minute=1, concurrent_streams=1)
        assert gateway.client.get(SPEECH, headers=limited).status_code == 200
        own.stop()
        for _ in range(3):
            answer = gateway.client.get(SPEECH, headers=limited)
            assert answer.status_code == status
            assert not set(RATE_HEADERS) & set(answer.headers)
        if status == 503:
            assert error_of(answer)["code"] == "limits_unavailable"
            assert answer.headers["retry-after"]
        free = key_of(gateway, admin)
        assert gateway.client.get(SPEECH, headers=free).status_code == 200

    def test_it_is_asked_again_when_it_is_back(self, start: Start, own: RedisServer) -> None:
        gateway = start(redis_url=own.url, redis_down="refuse")
        limited = key_of(gateway, create(gateway, scopes=["admin"])["key"], requests_per_minute=1_000_000)
        own.stop()
        assert gateway.client.get(SPEECH, headers=limited).status_code == 503
        own.start()
        answer = ask_until(gateway, limited, 200)
        assert answer.headers["x-ratelimit-limit-requests"] == "1000000"

    def test_one_that_hangs_is_down_and_one_that_goes_on_is_not(self, start: Start, own: RedisServer) -> None:
        gateway = start(redis_url=own.url, redis_down="allow")
        limited = key_of(gateway, create(gateway, scopes=["admin"])["key"], requests_per_minute=1)
        assert gateway.client.get(SPEECH, headers=limited).status_code == 200
        own.hang()
        for _ in range(50):  # most of them without asking it
            answer = gateway.client.get(SPEECH, headers=limited)
            assert (answer.status_code, set(RATE_HEADERS) & set(answer.headers)) == (200, set())
        own.go_on()
        ask_until(gateway, limited, 429)
        # Who asks too often finds out that it is back as well as anybody.
        for _ in range(50):
            answer = gateway.client.get(SPEECH, headers=limited)
            assert (answer.status_code, answer.headers["x-ratelimit-remaining-requests"]) == (429, "0")

    @pytest.mark.anyio
    async def test_an_answer_that_is_there_when_time_is_up_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Rates(FixedWindowRateLimiter):
            """Answers when the event loop has gone round a few times, as it does late after it has stood still."""

            async def hit(self, item: RateLimitItem, *identifiers: str, cost: int = 1) -> bool:
                for _ in range(5):
                    await asyncio.sleep(0)
                return False

        monkeypatch.setattr("gateway.limits.ANSWER_SECONDS", 0)
        limits = Limits(Rates(MemoryStorage()), MemoryLeases(), (TimeoutError,))
        async with AsyncExitStack() as until:
            with pytest.raises(RateLimited):
                await limits.take(Caller(id="a-key", requests_per_minute=1), until)

    def test_its_password_is_not_shown(self, start: Start, caplog: pytest.LogCaptureFixture) -> None:
        gateway = start(redis_url="redis://:a-password@127.0.0.1:1/0", redis_down="refuse")
        limited = key_of(gateway, create(gateway, scopes=["admin"])["key"], requests_per_minute=1)
        answer = gateway.client.get(SPEECH, headers=limited)
        assert answer.status_code == 503
        assert "a-password" not in answer.text + caplog.text


@pytest.mark.anyio
class TestLeases:
    async def test_what_a_killed_gateway_held_comes_free_by_itself(self, redis: RedisServer) -> None:
        """Nobody renews it; whoever asks gets it in the end."""
        async with Redis.from_url(redis.url) as client:
            killed, other = RedisLeases(client, 0.2), RedisLeases(client, 1000)
            assert await killed.take("ada", 2)
            assert await other.take("ada", 2)
            assert await other.take("ada", 2) is None
            for _ in range(100_000):
                if await other.take("ada", 2):
                    break
            else:
                raise AssertionError("it never came free")
            assert await other.take("ada", 2) is None  # but not what somebody renews

    async def test_what_is_renewed_stays_taken(self, redis: RedisServer) -> None:
        async with Redis.from_url(redis.url) as client:
            here, other = RedisLeases(client, 1000), RedisLeases(client, 1000)
            place = await here.take("bob", 1)
            assert place
            await client.zadd("atelier:leases:bob", {place: 10_000_000_000_000})  # until far beyond a lease
            await here.renew()
            ends_at = await client.zscore("atelier:leases:bob", place)
            assert ends_at
            assert ends_at < 10_000_000_000_000
            assert await other.take("bob", 1) is None
            await here.give_back("bob", place)
            assert await other.take("bob", 1)

    async def test_what_has_come_free_is_not_taken_by_renewing_it(self, redis: RedisServer) -> None:
        """As when it is given back while it is renewed."""
        async with Redis.from_url(redis.url) as client:
            here = RedisLeases(client, 1000)
            place = await here.take("eve", 1)
            assert place
            await client.zrem("atelier:leases:eve", place)
            await here.renew()
            assert await client.zcard("atelier:leases:eve") == 0

    async def test_memory_forgets_who_holds_nothing(self) -> None:
        leases = MemoryLeases()
        async with AsyncExitStack() as stack:
            for _ in range(2):
                assert await leases.take("a", 2)
                stack.push_async_callback(leases.give_back, "a", "a")
            assert await leases.take("a", 2) is None
        assert not leases._taken


def test_what_speaks_with_redis_is_loaded_only_for_it() -> None:
    """It takes 8 MB."""
    program = "import sys, gateway.app; sys.exit('redis' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
