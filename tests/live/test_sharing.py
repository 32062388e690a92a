"""Requests that meet share the model's forwards, and nobody's picture shows who was there too."""

import base64
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import av
import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.live.conftest import LONG, TOKEN, System
from tests.live.pictures import png

PATH = "/v1/images/generations"


def draw(system: System, **body: Any) -> httpx.Response:
    headers = {**TOKEN, "accept": "image/png"}
    return httpx.post(f"{system.worker('image')}{PATH}", json=body, headers=headers, timeout=LONG)


def pixels(data: bytes) -> NDArray[np.int64]:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def events(response: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    blocks = (block.split("\n") for block in response.text.strip().split("\n\n"))
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


def test_pictures_that_meet_share_forwards_and_look_as_they_do_alone(system: System) -> None:
    bodies = [
        {
            "prompt": "a cat",
            "seed": seed,
            "num_inference_steps": 60 + seed,
            "size": "64x64",  # where sharing pays on any machine: what it costs is measured, and decides
            "guidance_scale": 1 + seed,
        }
        for seed in range(5)
    ]
    bodies[3]["scheduler"] = "euler_a"
    alone = [draw(system, **body) for body in bodies]
    forwards, rows = (system.count("image", f"atelier_batch_size_{name}") for name in ("count", "sum"))
    with ThreadPoolExecutor(len(bodies)) as pool:
        together = list(pool.map(lambda body: draw(system, **body), bodies))
    shared = system.count("image", "atelier_batch_size_sum") - rows
    assert system.count("image", "atelier_batch_size_count") - forwards < 0.8 * shared

    for one, other in zip(alone, together, strict=True):
        assert one.status_code == other.status_code == 200
        assert np.abs(pixels(one.content) - pixels(other.content)).max() <= 2
        assert one.headers["x-iterations"] == other.headers["x-iterations"]


def test_one_who_leaves_a_shared_forward_stops_within_an_iteration_and_the_other_stays(system: System) -> None:
    left, after = (
        system.count("image", name, **labels)
        for name, labels in (
            ("atelier_generations_total", {"ending": "left"}),
            ("atelier_iterations_after_leave_total", {}),
        )
    )
    kept: list[httpx.Response] = []
    body = {"prompt": "a cat", "num_inference_steps": 100, "size": "256x256"}
    staying = threading.Thread(target=lambda: kept.append(draw(system, seed=1, **body)))
    staying.start()
    url, headers = f"{system.worker('image')}{PATH}", {**TOKEN, "accept": "text/event-stream"}
    with httpx.stream("POST", url, json={**body, "seed": 2}, headers=headers, timeout=LONG) as response:
        seen = ""
        for piece in response.iter_text():
            seen += piece
            if "event: progress" in seen:
                break
    system.wait(lambda: system.count("image", "atelier_generations_total", ending="left") > left)
    staying.join(LONG)

    assert system.count("image", "atelier_iterations_after_leave_total") - after <= 1
    assert kept[0].status_code == 200
    assert np.abs(pixels(kept[0].content) - pixels(draw(system, seed=1, **body).content)).max() <= 2


def test_events_tell_of_a_picture_from_the_queue_to_its_end(system: System) -> None:
    body = {"prompt": "a cat", "num_inference_steps": 12, "seed": 3}
    headers = {**TOKEN, "accept": "text/event-stream"}
    response = httpx.post(f"{system.worker('image')}{PATH}", json=body, headers=headers, timeout=LONG)
    told = events(response)
    names = [name for name, _ in told]

    assert names[0] == "queued"
    assert names[-1] == "done"
    assert [name for name in names if name not in {"progress", "preview", "queued"}] == ["started", "output", "done"]
    progress = [data for name, data in told if name == "progress"]
    assert [data["step"] for data in progress] == list(range(1, progress[-1]["steps"] + 1))
    previews = [data for name, data in told if name == "preview"]
    assert len(previews) == 3
    for preview in previews:
        with Image.open(io.BytesIO(base64.b64decode(preview["b64"]))) as sketch:
            assert sketch.format == "JPEG"
    (output,) = (data for name, data in told if name == "output")
    assert base64.b64decode(output["b64"]) == draw(system, **body).content


def test_a_masked_edit_paints_where_the_mask_is_transparent(system: System) -> None:
    mask = Image.new("RGBA", (256, 256), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 256, 128))
    file = io.BytesIO()
    mask.save(file, "PNG")
    url, headers = f"{system.worker('image')}/v1/images/edits", {**TOKEN, "accept": "image/png"}

    def edit(seed: int) -> NDArray[np.int64]:
        form = {"prompt": "a cat", "seed": str(seed), "num_inference_steps": "4", "strength": "1", "size": "256x256"}
        files = {"image": png(), "mask": file.getvalue()}
        response = httpx.post(url, data=form, files=files, headers=headers, timeout=LONG)
        assert response.status_code == 200, response.text
        return pixels(response.content)

    differences = np.abs(edit(1) - edit(2))  # another seed paints something else, and only where it may
    assert differences[:112].mean() > 5 * differences[144:].mean()


def test_a_film_of_a_prompt(system: System) -> None:
    form = {"prompt": "a boat", "num_frames": "5", "seed": "1"}
    response = httpx.post(f"{system.worker('video')}/v1/videos", data=form, headers=TOKEN, timeout=LONG)

    assert response.status_code == 200
    assert response.headers["x-model"] == "wan2.1-t2v-1.3b"
    with av.open(io.BytesIO(response.content), "r") as film:
        assert len(list(film.decode(video=0))) == 5
