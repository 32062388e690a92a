"""The SDK's clients against the running system, and what it is found to do with them."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.conformance.calls import CALLS, FILM, Call, Given, read, settled
from tests.conformance.strict import Strict, strict_gateway
from tests.live.conftest import LONG, System
from tests.live.pictures import png

KINDS = ("sync", "async")
Found = dict[tuple[str, str], Exception | None]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            if item.get_closest_marker("fresh") is None:
                item.add_marker(pytest.mark.live)
            for words in ("The Sora API", "deprecated"):  # the SDK, of some of its verbs
                item.add_marker(pytest.mark.filterwarnings(f"ignore:{words}:DeprecationWarning"))


@pytest.fixture(scope="session")
def sdk(system: System) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{system.gateway}/v1", api_key="-", max_retries=0, timeout=LONG) as client:
        yield client


@pytest.fixture(scope="session")
def found(sdk: openai.OpenAI) -> Found:
    """What came of every call with both clients: nothing, or the error."""
    film = sdk.videos.create_and_poll(prompt="", input_reference=("a.png", png()), extra_body=FILM)
    spare = [sdk.videos.create(prompt="", input_reference=png(), extra_body=FILM).id for _ in KINDS]
    given = Given(film.id, spare)
    return {(call.name, kind): outcome(sdk, call, given, kind) for call in CALLS for kind in KINDS}


def outcome(sdk: openai.OpenAI, call: Call, given: Given, kind: str) -> Exception | None:
    try:
        answer = read(call.ask(sdk, given)) if kind == "sync" else asyncio.run(asked(sdk, call, given))
        assert call.is_right(answer), answer
    except Exception as error:
        return error
    return None


async def asked(sdk: openai.OpenAI, call: Call, given: Given) -> object:
    async with openai.AsyncOpenAI(base_url=sdk.base_url, api_key="-", max_retries=0, timeout=LONG) as client:
        return await settled(call.ask(client, given))


@pytest.fixture(scope="session")
def strict(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Strict]:
    """With a policy, small uploads, and nobody where the worker of sound should be."""
    folder = tmp_path_factory.mktemp("strict")
    (folder / "policy.toml").write_text("[global]\ndeny = ['bomb']\n")
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        settings = {
            "ATELIER_AUDIO_URL": f"http://127.0.0.1:{deaf.getsockname()[1]}",
            "ATELIER_POLICY_FILE": str(folder / "policy.toml"),
            "ATELIER_MAX_UPLOAD_BYTES": "100000",
        }
        with strict_gateway(system, folder, **settings) as found:
            yield found


@pytest.fixture(scope="session")
def lenient(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Strict]:
    """With nothing out of the ordinary but its little patience."""
    with strict_gateway(system, tmp_path_factory.mktemp("lenient"), ATELIER_DEADLINE="20") as found:
        yield found
