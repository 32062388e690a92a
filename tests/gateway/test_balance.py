"""Several replicas of a worker: who is asked, who is left out, and what is never sent twice."""

import asyncio
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.balance import NUM_FAILURES, Replicas
from tests.gateway.conftest import LONG, PNG, Gateway, Workers, error_of, opened, served
from tests.gateway.servers import free_port

SPEECH = "/generate/audio?prompt=hello"
BOTH = "http://a.test,http://b.test"

Start = Callable[..., Gateway]

WORKER = """
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Worker(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.do_GET()

    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "5")
        self.end_headers()
        self.wfile.write(b"sound")

    def log_message(self, *words):
        pass

server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Worker)
print(server.server_port, flush=True)
server.serve_forever()
"""


class Hosts:
    """Lets each replica behave in its own way, to work and to questions about its health."""

    def __init__(self, workers: Workers) -> None:
        self.errors: dict[str, Exception] = {}
        self.unready: set[str] = set()
        self._workers, self._health = workers, workers.health
        workers.answer, workers.health = self.answer, self.health  # type: ignore[method-assign]

    async def answer(self, request: httpx.Request) -> httpx.Response:
        if error := self.errors.get(request.url.host):
            raise error
        return self._workers.stream(request.url.host.encode())

    async def health(self, request: httpx.Request) -> httpx.Response:
        if request.url.host in self.unready:
            raise httpx.ConnectError("refused")
        return await self._health(request)

    @property
    def asked(self) -> Counter[str]:
        """How often each was sent work."""
        return Counter(request.url.host for request in self._workers.requests)


@pytest.fixture
def hosts(workers: Workers) -> Hosts:
    return Hosts(workers)


class TestNotAccepted:
    """Connect errors: nothing was sent."""

    @pytest.mark.parametrize("error", [httpx.ConnectError("refused"), httpx.ConnectTimeout("silence")])
    def test_no_caller_notices_a_replica_that_takes_no_connections(
        self, start: Start, hosts: Hosts, error: Exception
    ) -> None:
        hosts.errors["a.test"] = error
        client = start(audio_url=BOTH).client
        for _ in range(20):
            response = client.get(SPEECH)
            assert (response.status_code, response.content) == (200, b"b.test")

    @pytest.mark.parametrize("status", [404, 503])
    def test_no_caller_notices_a_proxy_that_finds_no_worker(self, start: Start, workers: Workers, status: int) -> None:
        async def answer(request: httpx.Request) -> httpx.Response:
            answered = workers.stream(b"No replicas are available.")
            answered.status_code = status if request.url.host == "a.test" else 200
            return answered

        workers.answer = answer
        client = start(audio_url="http://a.test/audio,http://b.test/audio").client
        while "a.test" not in {request.url.host for request in workers.requests}:
            assert client.get(SPEECH).status_code == 200

    def test_it_is_left_out_at_once_and_until_it_is_ready(self, start: Start, hosts: Hosts) -> None:
        hosts.errors["a.test"] = httpx.ConnectError("refused")
        hosts.unready.add("a.test")
        client = start(audio_url=BOTH, probe_interval=0.01).client
        for _ in range(30):
            client.get(SPEECH)
        assert hosts.asked["a.test"] <= 1

        del hosts.errors["a.test"]
        hosts.unready.clear()
        assert any(client.get(SPEECH).content == b"a.test" for _ in range(1000))

    def test_a_form_goes_to_the_other_one_whole(self, start: Start, hosts: Hosts, workers: Workers) -> None:
        hosts.errors["a.test"] = httpx.ConnectError("refused")
        client = start(video_url=BOTH).client
        while not hosts.asked["a.test"]:
            assert client.post("/generate/video", files={"image": PNG}).content == b"b.test"
        assert all(PNG in request.content for request in workers.requests)

    def test_when_all_are_out_each_is_tried_and_the_caller_told_to_come_back(self, start: Start, hosts: Hosts) -> None:
        hosts.errors |= {"a.test": httpx.ConnectError("refused"), "b.test": httpx.ConnectTimeout("silence")}
        hosts.unready |= {"a.test", "b.test"}
        client = start(audio_url=BOTH).client
        for number in range(1, 4):
            response = client.get(SPEECH)
            assert (response.status_code, error_of(response)["code"]) == (503, "worker_unavailable")
            assert int(response.headers["retry-after"]) > 0
            assert response.headers["x-should-retry"] == "true"
            assert hosts.asked == {"a.test": number, "b.test": number}

    def test_on_real_sockets(self, start: Start) -> None:
        async def speech(request: Request) -> Response:
            return Response(b"sound")

        async def ready(request: Request) -> Response:
            return Response()

        routes = [Route("/v1/audio/speech", speech, methods=["POST"]), Route("/readyz", ready)]
        with socket.socket() as bound, served(Starlette(routes=routes)) as alive:
            bound.bind(("127.0.0.1", 0))
            dead = f"http://127.0.0.1:{bound.getsockname()[1]}"
            client = start(alive, audio_url=f"{dead},{alive}").client
            assert [client.get(SPEECH).content for _ in range(10)] == [b"sound"] * 10


class TestAccepted:
    """Anything else: a worker may be at it."""

    @pytest.mark.parametrize("error", [httpx.RemoteProtocolError("hung up"), httpx.ReadError("reset")])
    def test_work_is_not_sent_to_another_after_a_hang_up(self, start: Start, hosts: Hosts, error: Exception) -> None:
        hosts.errors |= {"a.test": error, "b.test": error}
        client = start(audio_url=BOTH).client
        for number in range(1, 5):
            assert error_of(client.get(SPEECH))["code"] == "worker_died"
            assert hosts.asked.total() == number

    def test_who_breaks_off_again_and_again_is_left_out(self, start: Start, hosts: Hosts) -> None:
        hosts.errors["a.test"] = httpx.RemoteProtocolError("hung up")
        client = start(audio_url=BOTH, probe_interval=0.01).client
        statuses = [client.get(SPEECH).status_code for _ in range(60)]
        assert hosts.asked["a.test"] == statuses.count(503) <= NUM_FAILURES

    @pytest.mark.parametrize("status", [400, 429, 500, 503])
    def test_a_refusal_is_the_answer(self, start: Start, workers: Workers, status: int) -> None:
        workers.refuses_in_envelope(status, "no")
        assert start(audio_url=BOTH).client.get(SPEECH).status_code == status
        assert len(workers.requests) == 1

    def test_silence_is_not_a_reason_to_ask_another(self, start: Start, workers: Workers) -> None:
        workers.never_answers()
        response = start(audio_url=BOTH, deadline=0.1).client.get(SPEECH)
        assert (response.status_code, len(workers.requests)) == (504, 1)


class TestKilled:
    """A worker process of its own, and kill -9."""

    @pytest.fixture
    def processes(self) -> Iterator[list[subprocess.Popen[str]]]:
        with ExitStack() as stack:
            started = []
            for _ in range(2):
                command = (sys.executable, "-c", WORKER, "0")
                started.append(stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)))
                stack.callback(started[-1].kill)
            yield started

    def test_only_what_it_was_at_is_lost(self, start: Start, processes: list[subprocess.Popen[str]]) -> None:
        urls = [f"http://127.0.0.1:{process.stdout.readline().strip()}" for process in processes if process.stdout]
        gateway = start(urls[0], audio_url=",".join(urls))
        is_under_way = threading.Barrier(9)

        def call() -> list[httpx.Response]:
            client = gateway.new_client()
            answers = [client.get(SPEECH) for _ in range(10)]
            is_under_way.wait(LONG)
            return answers + [client.get(SPEECH) for _ in range(30)]

        with ThreadPoolExecutor(8) as pool:
            calls = [pool.submit(call) for _ in range(8)]
            is_under_way.wait(LONG)
            processes[0].kill()
            for each in calls:
                lost = [error_of(answer)["code"] for answer in each.result(LONG) if answer.status_code != 200]
                assert lost in ([], ["worker_died"]), "a caller has one request under way, and loses no more"

    def test_killed_again_and_again_no_caller_loses_what_was_not_accepted(self, start: Start) -> None:
        ports = [free_port() for _ in range(3)]
        num_kills = 6

        def run(port: int, until: ExitStack) -> subprocess.Popen[str]:
            command = (sys.executable, "-c", WORKER, str(port))
            process = until.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            until.callback(process.kill)
            assert process.stdout
            assert process.stdout.readline()  # it listens
            return process

        with ExitStack() as stack:
            running = [run(port, stack) for port in ports]
            urls = [f"http://127.0.0.1:{port}" for port in ports]
            gateway = start(urls[0], audio_url=",".join(urls), probe_interval=0.05)
            is_over, answered = threading.Event(), threading.Semaphore(0)

            def call() -> Counter[str]:
                client, seen = gateway.new_client(), Counter[str]()
                while not is_over.is_set():
                    answer = client.get(SPEECH)
                    seen["" if answer.status_code == 200 else error_of(answer)["code"]] += 1
                    answered.release()
                return seen

            with ThreadPoolExecutor(8) as pool:
                calls = [pool.submit(call) for _ in range(8)]
                try:
                    for number in range(num_kills):
                        for _ in range(50):  # of load between one kill and the next
                            assert answered.acquire(timeout=LONG)
                        running[number % 3].kill()
                        running[number % 3].wait()
                        for _ in range(50):  # while it is away
                            assert answered.acquire(timeout=LONG)
                        running[number % 3] = run(ports[number % 3], stack)
                finally:
                    is_over.set()
                for each in calls:
                    seen = each.result(LONG)
                    assert set(seen) <= {"", "worker_died"}
                    assert seen["worker_died"] <= num_kills, "a caller has one request under way at each"


def ask_until(gateway: Gateway, is_enough: Callable[[], bool]) -> None:
    """Ask again and again; among equals it is chance who is asked, but not for so long."""
    for _ in range(500):
        if is_enough():
            return
        gateway.client.get(SPEECH)
    raise AssertionError("one was never asked")


class TestBalance:
    def test_the_least_busy_one_is_asked(self, start: Start, workers: Workers) -> None:
        gateway = start(audio_url="http://a.test,http://b.test,http://c.test")
        gate: Future[None] = Future()

        async def answer(request: httpx.Request) -> httpx.Response:
            return workers.stream(b"first", opened(gate), b"last")

        workers.answer = answer
        with ThreadPoolExecutor(9) as pool:
            calls = []
            for number in range(1, 10):
                workers.is_asked.clear()
                calls.append(pool.submit(gateway.client.get, SPEECH))
                assert workers.is_asked.wait(LONG)
                busy = Counter(request.url.host for request in workers.requests)
                assert max(busy.values()) == -(-number // 3)
            gate.set_result(None)
            assert {call.result(LONG).status_code for call in calls} == {200}

    def test_who_has_answered_is_free_again(self, start: Start, hosts: Hosts) -> None:
        """Also if that was an error, and if the caller left."""
        gateway = start(audio_url=BOTH)
        with gateway.client.stream("GET", SPEECH):
            pass
        hosts.errors["a.test"] = httpx.ReadError("reset")
        ask_until(gateway, lambda: hosts.asked["a.test"] > 0)
        hosts.errors.clear()
        ask_until(gateway, lambda: min(hosts.asked.values()) >= 10)

    def test_one_that_is_not_ready_is_not_asked(self, start: Start, hosts: Hosts) -> None:
        hosts.unready.add("a.test")
        gateway = start(audio_url=BOTH)
        gateway.client.get("/readyz")
        for _ in range(20):
            assert gateway.client.get(SPEECH).content == b"b.test"

    def test_all_that_are_equally_busy_take_turns(self, start: Start, hosts: Hosts) -> None:
        gateway = start(audio_url=BOTH)
        ask_until(gateway, lambda: bool(hosts.asked["a.test"] and hosts.asked["b.test"]))

    @given(st.lists(st.booleans(), min_size=1, max_size=100))
    def test_nobody_is_ever_busier_than_necessary(self, is_taken: list[bool]) -> None:
        """Requests come (true) and end (false) in any order: the one that is asked next has the fewest."""

        async def run() -> None:
            replicas, under_way = Replicas(["http://a.test", "http://b.test", "http://c.test"]), []
            for taken in is_taken:
                if taken:
                    chosen = replicas.in_order()[0]
                    assert chosen.num_outstanding == min(replica.num_outstanding for replica in replicas.all)
                    chosen.take(leases := AsyncExitStack())
                    under_way.append(leases)
                elif under_way:
                    await under_way.pop(0).aclose()
            assert sum(replica.num_outstanding for replica in replicas.all) == len(under_way)

        asyncio.run(run())


def test_the_work_of_all_replicas_is_added_up(start: Start, workers: Workers) -> None:
    hosts = Hosts(workers)
    gateway = start(image_url=BOTH)

    async def answer(request: httpx.Request) -> httpx.Response:
        if error := hosts.errors.get(request.url.host):
            raise error
        busy = {"num_waiting": 3, "num_active": 2, "batch_size": {"a.test": 2, "b.test": 1}[request.url.host]}
        return httpx.Response(200, json={"data": [{"id": "tiny-sd", "state": "ready", **busy}]})

    workers.answer = answer
    found = gateway.client.get("/v1/models/tiny-sd").json()
    assert (found["num_waiting"], found["num_active"], found["batch_size"]) == (6, 4, 2)
    hosts.errors["b.test"] = httpx.ConnectError("refused")
    found = gateway.client.get("/v1/models/tiny-sd").json()
    assert (found["state"], found["num_waiting"], found["batch_size"]) == ("ready", 3, 2)
