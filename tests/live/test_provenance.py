"""Every file says where it comes from, never what was asked unless that is wanted, and comes again byte by byte."""

import asyncio
import io
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from PIL import Image, ImageSequence

from tests.live.conftest import LONG, System
from tests.live.pictures import png

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")  # the SDK, of its video verbs

ASKED = "two lighthouses"
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "image": ("/v1/images/generations", {"prompt": ASKED, "num_inference_steps": 3}),
    "audio": ("/v1/audio/speech", {"input": ASKED, "response_format": "flac"}),
    "video": ("/v1/videos", {"num_inference_steps": "3", "num_frames": "4"}),
    "mesh": ("/v1/3d/generations", {"prompt": ASKED, "num_inference_steps": 3, "grid_size": 16}),
}
ASYNC = {"prefer": "respond-async, wait=120"}


@pytest.fixture(scope="module")
def sdk(system: System) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{system.gateway}/v1", api_key="-", max_retries=0, timeout=LONG) as client:
        yield client


def sent(task: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    """A request; a film's is a form."""
    path, body = BODIES[task]
    if task != "video":
        return path, {"json": {**body, **fields}}
    return path, {"data": {**body, **fields}, "files": {"input_reference": ("a.png", png())}}


def made(client: httpx.Client, task: str, **fields: Any) -> tuple[httpx.Response, dict[str, bytes]]:
    """The files of a job, by variant, and the answer to a request for the first of them."""
    path, body = sent(task, **fields)
    job = client.post(path, headers=ASYNC, **body).json()
    shown = client.get(f"/v1/jobs/{job['id']}").json()
    assert shown["status"] == "completed", shown
    files = [client.get(output["url"]) for output in shown["outputs"]]
    return files[0], {each["variant"]: file.content for each, file in zip(shown["outputs"], files, strict=True)}


@pytest.mark.parametrize("task", BODIES)
def test_all_files_of_a_job_say_who_made_them_and_not_what_was_asked(
    sdk: openai.OpenAI, client: httpx.Client, task: str
) -> None:
    answer, files = made(client, task, seed=7)
    for name, file in files.items():
        said: Any = sdk.content_provenance_checks.create(file=file).results[0]
        assert (said.outcome, said.seed) == ("detected", 7), name
        assert said.model in client.get("/v1/models").text
        assert said.revision.startswith("tiny:")
        assert set(said.parameters) <= {
            "size", "num_inference_steps", "guidance_scale", "num_frames", "fps", "motion_bucket_id", "grid_size",
        }  # fmt: skip
        assert b"lighthouse" not in file
    assert (answer.headers["x-seed"], bool(answer.headers["x-model"])) == ("7", True)


def test_what_was_asked_is_there_for_who_wants_it(sdk: openai.OpenAI) -> None:
    speech = sdk.audio.speech.create(
        model="bark-small", voice="v2/en_speaker_1", input=ASKED, response_format="opus",
        extra_body={"prompt_in_metadata": True},
    )  # fmt: skip
    said: Any = sdk.content_provenance_checks.create(file=speech.content).results[0]

    assert said.parameters == {"voice": "v2/en_speaker_1", "input": ASKED}


@pytest.mark.parametrize("task", BODIES)
def test_what_is_deterministic_comes_again_byte_by_byte_in_any_company(
    system: System, client: httpx.Client, task: str
) -> None:
    _, alone = made(client, task, seed=3, deterministic=True)
    posts = [sent(task, seed=3, deterministic=True), sent(task, seed=4), sent(task, seed=5)]

    async def together() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=system.gateway, timeout=LONG, trust_env=False) as crowd:
            return await asyncio.gather(*[crowd.post(path, headers=ASYNC, **body) for path, body in posts])

    first = asyncio.run(together())[0].json()
    shown = client.get(f"/v1/jobs/{first['id']}").json()
    again = {each["variant"]: client.get(each["url"]).content for each in shown["outputs"]}

    assert shown["seed"] == 3
    assert again == alone


@pytest.mark.parametrize("form", ["gif", "webp"])
def test_a_film_is_an_animation(sdk: openai.OpenAI, system: System, form: str) -> None:
    fields = {"num_frames": "4", "fps": "8", "num_inference_steps": "2", "output_format": form}
    film = sdk.videos.create_and_poll(prompt="", input_reference=("a.png", png()), extra_body=fields)
    content = sdk.videos.download_content(film.id)
    path, body = sent("video", fps="8")
    bare = httpx.post(
        system.worker("video") + path,
        headers={"accept": f"image/{form}", "x-atelier-token": "of-this-test"},
        timeout=LONG,
        **body,
    )

    assert content.response.headers["content-type"] == bare.headers["content-type"] == f"image/{form}"
    assert f".{form}" in content.response.headers["content-disposition"]
    for file in (content.read(), bare.content):
        with Image.open(io.BytesIO(file)) as picture:
            durations = [shown(each) for each in ImageSequence.Iterator(picture)]
        assert (picture.format, picture.info["loop"]) == (form.upper(), 0)
        assert (len(durations), sum(durations)) == (4, 500)


def shown(frame: Image.Image) -> int:
    frame.load()  # before which a WebP does not know
    return int(frame.info["duration"])
