"""`dns+http://…`: a replica at each address that a name has, found again and again."""

import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.settings import Settings
from tests.gateway.conftest import LONG, Gateway, Workers, error_of, opened
from tests.gateway.servers import free_port

SPEECH = "/generate/audio?prompt=hello"
NAMED = "dns+http://audio.cluster:3000"

Start = Callable[..., Gateway]


class Resolver:
    """Stands for the system's: a name has the addresses that a test gives it."""

    def __init__(self) -> None:
        self.addresses: dict[str, list[str]] = {}
        self.error: OSError | None = None
        self.silence: threading.Event | None = None  # until it is set
        self._system = socket.getaddrinfo

    def __call__(self, host: Any, port: Any, *args: Any, **kwargs: Any) -> list[Any]:
        if not str(host).endswith(".cluster"):
            return self._system(host, port, *args, **kwargs)
        if self.silence is not None:
            self.silence.wait(LONG)
        if self.error is not None:
            raise self.error
        found = self.addresses.get(host, [])
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [self._system(address, port, *args, **kwargs)[0] for address in found]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    standing_in = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", standing_in)
    yield standing_in
    if standing_in.silence is not None:
        standing_in.silence.set()  # lets go of the thread


class Pods:
    """Workers at addresses; those that are `unready` say so."""

    def __init__(self, workers: Workers) -> None:
        self.unready: set[str] = set()
        self.num_looks: Counter[str] = Counter()
        self._workers = workers
        workers.answer, workers.health = self.answer, self.health  # type: ignore[method-assign]

    async def answer(self, request: httpx.Request) -> httpx.Response:
        return self._workers.stream(request.url.netloc)

    async def health(self, request: httpx.Request) -> httpx.Response:
        self.num_looks[request.url.host] += 1
        return httpx.Response(503 if request.url.host in self.unready else 200)


@pytest.fixture
def pods(workers: Workers) -> Pods:
    return Pods(workers)


def replicas(gateway: Gateway) -> dict[str, int]:
    found: dict[str, int] = gateway.client.get("/readyz").json()["replicas"]["audio"]
    return found


def asked(gateway: Gateway, times: int = 40) -> set[bytes]:
    """Who answers; among equals it is chance, but not for so long."""
    answers = [gateway.client.get(SPEECH) for _ in range(times)]
    assert {answer.status_code for answer in answers} == {200}
    return {answer.content for answer in answers}


def test_every_address_is_a_replica(start: Start, pods: Pods, resolver: Resolver) -> None:
    resolver.addresses["audio.cluster"] = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    gateway = start(audio_url=NAMED)
    assert asked(gateway) == {b"10.0.0.1:3000", b"10.0.0.2:3000", b"10.0.0.3:3000"}
    assert replicas(gateway) == {"ready": 3, "all": 3}


def test_who_comes_is_asked_and_who_goes_is_not(start: Start, pods: Pods, resolver: Resolver) -> None:
    resolver.addresses["audio.cluster"] = ["10.0.0.1", "10.0.0.2"]
    gateway = start(audio_url=NAMED, probe_interval=60)
    resolver.addresses["audio.cluster"] = ["10.0.0.2", "10.0.0.3"]
    assert replicas(gateway) == {"ready": 2, "all": 2}  # which looks
    assert asked(gateway) == {b"10.0.0.2:3000", b"10.0.0.3:3000"}


def test_it_is_looked_up_again_and_again(start: Start, pods: Pods, resolver: Resolver) -> None:
    gateway = start(audio_url=NAMED, probe_interval=0.01)
    resolver.addresses["audio.cluster"] = ["10.0.0.1"]
    assert any(gateway.client.get(SPEECH).status_code == 200 for _ in range(1000))


def test_who_is_not_ready_yet_is_not_asked(start: Start, pods: Pods, resolver: Resolver) -> None:
    resolver.addresses["audio.cluster"] = ["10.0.0.1"]
    gateway = start(audio_url=NAMED, probe_interval=60)
    pods.unready.add("10.0.0.2")
    resolver.addresses["audio.cluster"].append("10.0.0.2")
    assert replicas(gateway) == {"ready": 1, "all": 2}
    assert asked(gateway) == {b"10.0.0.1:3000"}


def test_what_is_known_of_one_outlives_a_look(start: Start, pods: Pods, resolver: Resolver, workers: Workers) -> None:
    """Else who is at work would count as idle after every look."""
    resolver.addresses["audio.cluster"] = ["10.0.0.1", "10.0.0.2"]
    gateway = start(audio_url=NAMED, probe_interval=60)
    gate: Future[None] = Future()
    for _ in range(10):
        workers.streams_once(b"first", opened(gate))
        with ThreadPoolExecutor(1) as pool:
            workers.is_asked.clear()
            call = pool.submit(gateway.new_client().get, SPEECH)
            assert workers.is_asked.wait(LONG)
            busy = workers.requests[-1].url.host
            workers.answer = pods.answer
            replicas(gateway)
            assert gateway.client.get(SPEECH).content != f"{busy}:3000".encode()
            gate.set_result(None)
            assert call.result(LONG).status_code == 200
        gate = Future()


def test_nobody_there_is_said_and_the_name_is_found_later(start: Start, pods: Pods, resolver: Resolver) -> None:
    gateway = start(audio_url=NAMED, probe_interval=60)
    response = gateway.client.get(SPEECH)
    assert (response.status_code, error_of(response)["code"]) == (503, "worker_unavailable")
    assert int(response.headers["retry-after"]) > 0
    said = gateway.client.get("/readyz")
    assert (said.status_code, said.json()["workers"]["audio"]) == (503, "unreachable")
    assert said.json()["replicas"]["audio"] == {"ready": 0, "all": 0}

    resolver.addresses["audio.cluster"] = ["10.0.0.1"]
    assert replicas(gateway) == {"ready": 1, "all": 1}
    assert asked(gateway) == {b"10.0.0.1:3000"}


@pytest.mark.parametrize("error", [socket.gaierror(socket.EAI_AGAIN, "try again"), OSError("no more sockets")])
def test_while_dns_is_ill_all_stays_as_it_was(start: Start, pods: Pods, resolver: Resolver, error: OSError) -> None:
    resolver.addresses["audio.cluster"] = ["10.0.0.1"]
    gateway = start(audio_url=NAMED, probe_interval=60)
    resolver.error = error
    assert replicas(gateway) == {"ready": 1, "all": 1}
    assert asked(gateway) == {b"10.0.0.1:3000"}


def test_while_dns_is_silent_others_are_looked_at(
    start: Start, pods: Pods, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.names.LOOK_SECONDS", 0.01)
    resolver.addresses["audio.cluster"] = ["10.0.0.1"]
    gateway = start(audio_url=NAMED, probe_interval=60)
    resolver.silence = threading.Event()
    for _ in range(20):  # more than there are threads
        assert replicas(gateway) == {"ready": 1, "all": 1}
    resolver.addresses["audio.cluster"] = ["10.0.0.2"]
    resolver.silence.set()
    assert any(asked(gateway, 1) == {b"10.0.0.2:3000"} for _ in range(1000) if replicas(gateway))


def test_names_and_addresses_go_together_and_count_once(start: Start, pods: Pods, resolver: Resolver) -> None:
    resolver.addresses |= {"audio.cluster": ["10.0.0.1"], "more.cluster": ["10.0.0.1", "10.0.0.2"]}
    gateway = start(audio_url=f"{NAMED},dns+http://more.cluster:3000/, http://10.0.0.3:3000")
    assert asked(gateway) == {b"10.0.0.1:3000", b"10.0.0.2:3000", b"10.0.0.3:3000"}
    assert replicas(gateway) == {"ready": 3, "all": 3}


def test_two_modalities_may_be_behind_one_name(start: Start, pods: Pods, resolver: Resolver) -> None:
    resolver.addresses["audio.cluster"] = ["10.0.0.1"]
    gateway = start(audio_url=NAMED, image_url=NAMED)
    assert gateway.client.get("/readyz").json()["replicas"]["image"] == {"ready": 1, "all": 1}


def test_a_worker_with_both_kinds_of_address_is_one(start: Start, pods: Pods, resolver: Resolver) -> None:
    resolver.addresses["audio.cluster"] = ["fd00::1", "10.0.0.1", "fd00::2", "10.0.0.2"]
    gateway = start(audio_url=NAMED)
    assert asked(gateway) == {b"[fd00::1]:3000", b"[fd00::2]:3000"}


def test_on_real_sockets(start: Start, resolver: Resolver) -> None:
    """Also over connections that are kept."""

    async def speech(request: Request) -> Response:
        return Response(str(request.url.hostname).encode())

    async def ready(request: Request) -> Response:
        return Response()

    routes = [Route("/v1/audio/speech", speech, methods=["POST"]), Route("/readyz", ready)]
    port, hosts = free_port(), ["127.0.0.2", "127.0.0.3"]
    servers = [
        uvicorn.Server(uvicorn.Config(Starlette(routes=routes), host=host, port=port, log_config=None))
        for host in hosts
    ]
    threads = [threading.Thread(target=server.run) for server in servers]
    for thread in threads:
        thread.start()
    try:
        resolver.addresses["audio.cluster"] = hosts
        gateway = start(f"http://127.0.0.2:{port}", audio_url=f"dns+http://audio.cluster:{port}", probe_interval=60)
        assert any(replicas(gateway)["ready"] == 2 for _ in range(1000))  # once both listen
        assert asked(gateway) == {b"127.0.0.2", b"127.0.0.3"}
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.should_exit = True
            thread.join()


@pytest.mark.parametrize(
    "url", ["dns+https://text:3000", "dns+ftp://text", "dns+http://", "dns+text:3000", "dns+http://a:0"]
)
def test_what_leads_nowhere_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(ValueError, match="text_url"):
        Settings(text_url=url)


def test_a_provider_has_no_name_of_that_kind() -> None:
    with pytest.raises(ValueError, match="openai_base_url"):
        Settings(openai_base_url="dns+http://host/v1")
