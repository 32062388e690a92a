"""The official SDK draws: through the gateway, whole and in events, and what it cannot have is refused by its name."""

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from numpy.typing import NDArray
from openai.types import ImagesResponse
from PIL import Image

from tests.live.conftest import LONG, System
from tests.live.pictures import png

MODEL = "tiny-sd"
STEPS = {"num_inference_steps": 4, "seed": 7}


@pytest.fixture(scope="module")
def client(system: System) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{system.gateway}/v1", api_key="-", max_retries=0, timeout=LONG) as sdk:
        yield sdk


def files(answer: ImagesResponse) -> list[bytes]:
    return [base64.b64decode(picture.b64_json or "") for picture in answer.data or []]


def opened(file: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(file))
    picture.load()
    return picture


def pixels(file: bytes) -> NDArray[np.int64]:
    return np.asarray(opened(file).convert("RGB")).astype(int)


def edited(client: openai.OpenAI, **fields: Any) -> Any:
    extra = {**STEPS, **fields.pop("extra_body", {})}
    return client.images.edit(model=MODEL, prompt="a cat", extra_body=extra, **{"image": png(), **fields})


def test_pictures_come_each_with_its_seed_and_one_alone_is_the_same(client: openai.OpenAI) -> None:
    three = client.images.generate(prompt="a cat", n=3, size="64x64", extra_body=STEPS)
    again = client.images.generate(prompt="a cat", n=1, size="auto", extra_body={**STEPS, "seed": 9})
    seeds = [getattr(picture, "seed", None) for picture in three.data or []]

    assert seeds == [7, 8, 9]
    assert np.abs(pixels(files(three)[2]) - pixels(files(again)[0])).max() <= 2
    assert np.abs(pixels(files(three)[0]) - pixels(files(three)[1])).max() > 2
    assert (three.size, three.output_format, three.background) == ("64x64", "png", "opaque")
    assert three.usage is not None
    assert three.usage.total_tokens == 0
    assert getattr(three.usage, "pixel_steps", None) == 3 * 4 * 64 * 64


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
def test_a_file_is_of_its_format_and_says_where_it_comes_from(client: openai.OpenAI, output_format: Any) -> None:
    extra = {**STEPS, "negative_prompt": "zebras", "guidance_scale": 3.5}
    answer = client.images.generate(prompt="two lighthouses", output_format=output_format, extra_body=extra)
    (file,) = files(answer)
    picture = opened(file)

    assert picture.format == output_format.upper()
    if output_format == "png":
        assert (picture.info["Model"], picture.info["Seed"], picture.info["Comment"]) == (MODEL, "7", "AI-generated")
        said = json.loads(picture.info["Parameters"])
    else:
        marked, _, described = picture.getexif()[270].partition(": ")
        said = json.loads(described)
        assert (marked, said["model"], said["seed"]) == ("AI-generated", MODEL, 7)
    assert (said["num_inference_steps"], said["guidance_scale"], said["size"]) == (4, 3.5, "64x64")
    assert b"trainedAlgorithmicMedia" in file
    assert b"lighthouse" not in file
    assert b"zebra" not in file


def test_compression_makes_files_smaller(client: openai.OpenAI) -> None:
    small, large = (
        len(
            files(client.images.generate(prompt="a", output_format="jpeg", output_compression=each, extra_body=STEPS))[
                0
            ]
        )
        for each in (20, 100)
    )
    assert small < large / 2


def test_what_is_deterministic_is_the_same_bytes_in_any_company(client: openai.OpenAI) -> None:
    body = {**STEPS, "deterministic": True}
    alone = files(client.images.generate(prompt="a cat", extra_body=body))

    async def together() -> list[ImagesResponse]:
        async with openai.AsyncOpenAI(base_url=client.base_url, api_key="-", max_retries=0, timeout=LONG) as sdk:
            others = [sdk.images.generate(prompt="a dog", n=2, extra_body={"num_inference_steps": 6}) for _ in range(3)]
            return list(await asyncio.gather(sdk.images.generate(prompt="a cat", extra_body=body), *others))

    assert files(asyncio.run(together())[0]) == alone


def check_events(events: list[Any], prefix: str, num_sketches: int) -> bytes:
    *sketches, last = events
    assert [event.type for event in sketches] == [f"{prefix}.partial_image"] * num_sketches
    assert [event.partial_image_index for event in sketches] == list(range(num_sketches))
    assert last.type == f"{prefix}.completed"
    assert last.usage.total_tokens == 0
    for event in events:
        assert (event.size, event.output_format, event.background) == ("64x64", "webp", "opaque")
        assert opened(base64.b64decode(event.b64_json)).format == "WEBP"
    return base64.b64decode(last.b64_json)


@pytest.mark.parametrize("num_sketches", [0, 1, 3])
def test_a_stream_shows_sketches_and_then_the_picture(client: openai.OpenAI, num_sketches: int) -> None:
    given: Any = {"prompt": "a cat", "output_format": "webp", "extra_body": {**STEPS, "num_inference_steps": 12}}
    whole = files(client.images.generate(**given))[0]
    events = list(client.images.generate(**given, stream=True, partial_images=num_sketches))

    assert np.abs(pixels(check_events(events, "image_generation", num_sketches)) - pixels(whole)).max() <= 6  # lossy


def test_an_async_stream_shows_the_same(client: openai.OpenAI) -> None:
    async def stream() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=client.base_url, api_key="-", max_retries=0, timeout=LONG) as sdk:
            extra = {**STEPS, "num_inference_steps": 12}
            made = await sdk.images.generate(
                prompt="a", output_format="webp", stream=True, partial_images=2, extra_body=extra
            )
            return [event async for event in made]

    check_events(asyncio.run(stream()), "image_generation", 2)


def test_an_edit_is_the_same_streamed_and_whole(client: openai.OpenAI) -> None:
    given: Any = {"output_format": "webp", "size": "64x64", "extra_body": {"num_inference_steps": 12}}
    whole = files(edited(client, **given))[0]
    events = list(edited(client, **given, stream=True, partial_images=2))

    assert np.abs(pixels(check_events(events, "image_edit", 2)) - pixels(whole)).max() <= 6


def test_a_list_of_one_picture_and_a_mask_are_taken(client: openai.OpenAI) -> None:
    mask = Image.new("RGBA", (96, 80), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 96, 40))
    file = io.BytesIO()
    mask.save(file, "PNG")
    size: Any = "256x256"
    painted = [
        pixels(files(edited(client, image=[png()], mask=file.getvalue(), size=size, extra_body={"seed": seed}))[0])
        for seed in (1, 2)
    ]
    differences = np.abs(painted[0] - painted[1])

    assert differences[:112].mean() > 5 * differences[144:].mean()


def test_several_edits_come_at_once(client: openai.OpenAI) -> None:
    answer = edited(client, n=2)

    assert len(files(answer)) == 2
    assert files(answer)[0] != files(answer)[1]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 11}, "n"),
        ({"n": 0}, "n"),
        ({"n": 2, "stream": True}, "n"),
        ({"partial_images": 2}, "partial_images"),
        ({"partial_images": 4, "stream": True}, "partial_images"),
        ({"size": "65x64"}, "size"),
        ({"response_format": "url", "stream": True}, "response_format"),
        ({"output_format": "gif"}, "output_format"),
        ({"output_compression": 50}, "output_compression"),
        ({"background": "transparent"}, "background"),
        ({"moderation": "low"}, "moderation"),
        ({"quality": "hd"}, "quality"),
        ({"style": "natural"}, "style"),
        ({"extra_body": {"steps": 3}}, "steps"),
        ({"extra_body": {"scheduler": "pndm", "num_inference_steps": 1, "strength": 0.5}}, "strength"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_its_name(client: openai.OpenAI, fields: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        client.images.generate(**{"prompt": "a cat", **fields})

    assert refusal.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"image": [png(), png()]}, "image"),
        ({"image": b"no picture"}, "image"),
        ({"mask": b"no picture"}, "mask"),
        ({"input_fidelity": "high"}, "input_fidelity"),
        ({"extra_body": {"strength": 0}}, "strength"),
    ],
)
def test_an_edit_that_cannot_be_made_is_refused_by_its_name(client: openai.OpenAI, fields: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        edited(client, **fields)

    assert refusal.value.param == param


def test_hints_and_defaults_change_nothing(client: openai.OpenAI) -> None:
    plain = client.images.generate(prompt="a cat", extra_body=STEPS)
    hinted = client.images.generate(
        prompt="a cat", model=MODEL, quality="auto", background="auto", moderation="auto", style="vivid", user="me",
        response_format="b64_json", size="auto", extra_body={**STEPS, "safety_identifier": "x"},
    )  # fmt: skip

    assert files(plain) == files(hinted)


def test_an_unknown_model_is_not_found_and_those_there_are_are_named(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=MODEL) as refusal:
        client.images.generate(prompt="a cat", model="gpt-image-1")
    with pytest.raises(openai.NotFoundError, match=MODEL):
        client.images.edit(prompt="a cat", image=png(), model="gpt-image-1")

    assert (refusal.value.code, refusal.value.param) == ("model_not_found", "model")


def test_the_file_alone_is_one_picture(system: System) -> None:
    url, headers = f"{system.gateway}/v1/images/generations", {"accept": "image/png"}
    alone = httpx.post(url, json={"prompt": "a cat", **STEPS}, headers=headers, timeout=LONG)
    two = httpx.post(url, json={"prompt": "a cat", **STEPS, "n": 2}, headers=headers, timeout=LONG)

    assert opened(alone.content).format == "PNG"
    assert two.status_code == 400
    assert two.json()["error"]["param"] == "n"


@pytest.mark.parametrize("name", ["generate", "edit"])
def test_links_lead_to_the_pictures_without_a_key(client: openai.OpenAI, name: str) -> None:
    def draw(**fields: Any) -> Any:
        if name == "edit":
            return edited(client, n=2, **fields)
        return client.images.generate(prompt="a cat", n=2, extra_body=STEPS, **fields)

    whole, linked = draw(), draw(response_format="url")
    found = [httpx.get(each.url or "", timeout=LONG) for each in linked.data or []]

    assert [each.b64_json for each in linked.data] == [None, None]
    assert [getattr(each, "seed", None) for each in linked.data] == [7, 8]
    assert (linked.size, linked.usage) == (whole.size, whole.usage)
    assert [each.headers["content-type"] for each in found] == ["image/png"] * 2
    for one, other in zip(found, files(whole), strict=True):
        assert np.abs(pixels(one.content) - pixels(other)).max() <= 2
