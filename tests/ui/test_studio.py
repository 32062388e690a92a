"""The studio without a browser: what it asks of the gateway, and what it says of jobs."""

import json
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import pytest
from starlette.responses import Response
from streamlit.testing.v1 import AppTest

from tests.live.pictures import png
from tests.ui.conftest import job, listing, model, page_of
from tests.ui.gateway import Gateway, refusal

Visit = Callable[..., AppTest]
UNDER_WAY: dict[str, Any] = {
    "status": "in_progress",
    "progress": 30,
    "step_progress": {"step": 3, "steps": 10},
    "eta_seconds": 4.2,
}


@pytest.fixture
def serving(gateway: Gateway) -> Gateway:
    gateway.answers["GET", "/v1/models"] = {"data": [model("image", "tiny-sd"), model("text", "chat")]}
    gateway.answers["GET", "/v1/jobs"] = page_of()
    return gateway


def labelled(page: AppTest, label: str) -> Any:
    return next(button for button in page.button if button.label == label)


def bodies(gateway: Gateway, path: str) -> list[dict[str, Any]]:
    return [json.loads(body) for method, asked, body, _ in gateway.asked if (method, asked) == ("POST", path)]


def test_a_picture_is_asked_for_as_a_job(serving: Gateway, visit: Visit) -> None:
    serving.answers["POST", "/v1/images/generations"] = {"id": "job_1"}
    page = visit(task="image")
    page.text_input(key="image-num_inference_steps").set_value("7").run()
    page.chat_input[0].set_value("a boat").run()

    assert bodies(serving, "/v1/images/generations") == [
        {"prompt": "a boat", "num_inference_steps": 7, "model": "tiny-sd"}
    ]
    headers = next(headers for _, path, _, headers in serving.asked if path == "/v1/images/generations")
    assert headers["prefer"] == "respond-async"


def test_texts_say_what_they_call(serving: Gateway, visit: Visit) -> None:
    serving.answers["GET", "/v1/audio/voices"] = {"data": []}
    call = {"name": "weather", "arguments": '{"city": "Rome"}'}
    answers = {
        "job_1": {"choices": [{"message": {"content": None, "tool_calls": [{"function": call}]}}]},
        "job_2": {"output": [{"type": "message", "content": [{"text": "I look."}]}, {"type": "function_call", **call}]},
        "job_3": {"choices": [{"text": "once"}, {"text": "upon"}]},
    }
    files = {
        name: {"variant": "answer", "media_type": "application/json", "url": f"/v1/jobs/{name}/content", "step": 1}
        for name in answers
    }
    serving.answers["GET", "/v1/jobs"] = listing(
        *(job("text", name, prompt=name, outputs=[file]) for name, file in files.items())
    )
    for name, answer in answers.items():
        serving.answers["GET", f"/v1/jobs/{name}/content"] = answer
    page = visit("gallery")

    called = 'weather({"city": "Rome"})'
    assert [text.value for text in page.text if not text.value.startswith("job_")] == [
        called,
        f"I look. {called}",
        "once upon",
    ]


def test_who_made_nothing_yet_is_offered_what_to_begin_with(serving: Gateway, visit: Visit) -> None:
    tried = [model("image", "sd", examples=["a red circle", "a boat"]), model("image", "other", is_default=False)]
    serving.answers["GET", "/v1/models"] = {"data": tried}
    serving.answers["POST", "/v1/images/generations"] = {"id": "job_1"}
    page = visit(task="image")
    page.text_input(key="image-num_inference_steps").set_value("7").run()
    labelled(page, "a red circle").click().run()

    assert bodies(serving, "/v1/images/generations") == [
        {"prompt": "a red circle", "num_inference_steps": 7, "model": "sd"}
    ]

    serving.answers["GET", "/v1/jobs"] = page_of(job("image"))
    assert "a boat" not in [button.label for button in visit(task="image").button]


def test_a_conversation_begins_with_an_example(serving: Gateway, visit: Visit) -> None:
    serving.answers["GET", "/v1/models"] = {"data": [model("text", "chat", examples=["What is Atelier?"])]}
    page = visit(task="text")
    labelled(page, "What is Atelier?").click().run()
    (asked,) = bodies(serving, "/v1/chat/completions")

    assert asked["messages"] == [{"role": "user", "content": "What is Atelier?"}]


def test_voice_and_adapter_are_those_of_the_model(serving: Gateway, visit: Visit) -> None:
    serving.answers["GET", "/v1/models"] = {
        "data": [
            model("image", "sd", adapters=[{"name": "ink", "licence": "MIT"}]),
            model("audio", "bark", voices=["alloy"], adapters=[]),
        ]
    }
    serving.answers["POST", "/v1/images/generations"] = {"id": "job_1"}
    speech, page = visit(task="audio"), visit(task="image")
    next(box for box in page.selectbox if box.label == "Adapter").set_value("ink").run()
    page.chat_input[0].set_value("a boat").run()

    assert [box.options for box in speech.selectbox if box.label in ("Voice", "Adapter")] == [["alloy"]]
    assert bodies(serving, "/v1/images/generations") == [{"prompt": "a boat", "adapter": "ink", "model": "sd"}]


def test_what_only_another_model_has_is_not_asked_of_this_one(serving: Gateway, visit: Visit) -> None:
    serving.answers["GET", "/v1/models"] = {
        "data": [
            model("image", "sd", adapters=[{"name": "ink", "licence": "MIT"}]),
            model("image", "other", is_default=False, adapters=[{"name": "chalk", "licence": None}]),
            model("audio", "bark", voices=["alloy"]),
        ]
    }
    serving.answers["POST", "/v1/images/generations"] = {"id": "job_1"}
    stale = {"image-adapter": "ink", "model-image": "other", "audio-voice": "of long ago", "model-audio": "gone"}
    page, speech = visit(task="image", **stale), visit(task="audio", **stale)
    page.chat_input[0].set_value("a boat").run()

    assert bodies(serving, "/v1/images/generations") == [{"prompt": "a boat", "model": "other"}]
    assert [box.value for box in speech.selectbox if box.label in ("Model", "Voice")] == ["bark", None]


def test_speech_has_one_address_however_often_it_waits_for_its_worker(serving: Gateway, visit: Visit) -> None:
    serving.answers["GET", "/v1/models"] = {"data": [model("audio", "bark", voices=["alloy"])]}
    urls = []
    for attempts, status in [(1, "in_progress"), (1, "queued"), (2, "in_progress"), (2, "completed")]:
        speaks = job("audio", **{**UNDER_WAY, "status": status}, attempts=attempts)
        serving.answers["GET", "/v1/jobs"], serving.answers["GET", "/v1/jobs/job_1"] = page_of(speaks), speaks
        [player] = visit(task="audio").get("bidi_component")
        urls.append(json.loads(player.proto.json)["url"])

    assert len(set(urls)) == 1


def test_a_job_under_way_says_how_far_it_is_and_can_be_cancelled(serving: Gateway, visit: Visit) -> None:
    doing = job("mesh", **UNDER_WAY)
    serving.answers["GET", "/v1/models"] = {"data": [model("mesh", "shap-e")]}
    serving.answers["GET", "/v1/jobs"] = page_of(doing)
    serving.answers["GET", "/v1/jobs/job_1"] = doing
    serving.answers["POST", "/v1/jobs/job_1/cancel"] = doing
    page = visit(task="mesh")
    labelled(page, "Cancel").click().run()

    assert page.get("progress")[0].proto.text == "Step 3 of 10, about 4 s left"
    assert "/v1/jobs/job_1/cancel" in serving.calls("POST")


def test_a_job_whose_worker_is_away_is_said_to_wait(serving: Gateway, visit: Visit) -> None:
    waits = job("image", status="queued", queue_position=2)
    serving.answers["GET", "/v1/jobs"] = page_of(waits)
    serving.answers["GET", "/v1/jobs/job_1"] = waits
    serving.answers["GET", "/readyz"] = {"workers": {"image": "unreachable"}}
    page = visit(task="image")

    assert page.get("progress")[0].proto.text == "Waits: 2 came before"
    assert "does not answer; it may be starting. The job waits until it is back" in page.warning[0].value


def test_again_is_the_same_with_another_seed(serving: Gateway, visit: Visit) -> None:
    serving.answers["GET", "/v1/jobs"] = page_of(job("image", status="cancelled"))
    serving.answers["POST", "/v1/images/generations"] = {"id": "job_2"}
    page = visit(task="image")
    labelled(page, "Again with another seed").click().run()

    [body] = bodies(serving, "/v1/images/generations")
    assert body["prompt"] == "a boat"
    assert body["seed"] != 5


@pytest.mark.parametrize(
    ("chosen", "sent"),
    [
        ({"model-mesh": "of-pictures"}, {"model": "of-pictures"}),
        ({"model-mesh": "of-words", "mesh-adapter": "ink"}, {}),
        ({}, {}),
    ],
)
def test_what_is_made_of_a_picture_goes_by_the_options(
    serving: Gateway, visit: Visit, chosen: dict[str, str], sent: dict[str, str]
) -> None:
    made = {"variant": "image", "media_type": "image/png", "url": "/v1/jobs/job_1/content?variant=image", "step": 1}
    ink = [{"name": "ink", "licence": "MIT"}]
    serving.answers["GET", "/v1/models"]["data"] += [
        model("mesh", "of-words", adapters=ink),
        model("mesh", "of-pictures", input_modalities=["image"]),
    ]
    serving.answers["GET", "/v1/jobs"] = page_of(job("image", outputs=[made]))
    serving.answers["GET", "/v1/jobs/job_1/content"] = Response(png(), media_type="image/png")
    serving.answers["POST", "/v1/3d/generations"] = {"id": "job_2"}
    page = visit(task="image", **{"mesh-grid_size": "32", "mesh-seed": "7"}, **chosen)
    labelled(page, "Make this 3D").click().run()

    [body] = bodies(serving, "/v1/3d/generations")
    assert body == {"grid_size": 32, "seed": 7, "image": b64encode(png()).decode(), **sent}


@pytest.mark.parametrize(
    ("words", "number"),
    [(".5", 0.5), ("1.", 1.0), ("-.5", -0.5), ("7", 7), ("0,5", "0,5"), (".", "."), ("1e3", "1e3"), ("many", "many")],
)
def test_numbers_are_what_people_write(serving: Gateway, visit: Visit, words: str, number: float | str) -> None:
    serving.answers["POST", "/v1/images/generations"] = {"id": "job_1"}
    page = visit(task="image", **{"image-guidance_scale": words})
    page.chat_input[0].set_value("a boat").run()

    [body] = bodies(serving, "/v1/images/generations")
    assert body["guidance_scale"] == number


@pytest.mark.parametrize(
    ("kind", "media_type", "shown", "labels"),
    [
        ("image", "image/jpeg", Response(png(), media_type="image/png"), ["JPG", "PNG", "WEBP"]),
        ("audio", "audio/ogg", Response(b"OggS", media_type="audio/ogg"), ["OPUS", "MP3", "WAV", "FLAC", "AAC", "PCM"]),
        ("audio", "audio/pcm", Response(b"", media_type="audio/pcm"), ["PCM"]),
        ("video", "image/gif", Response(png(), media_type="image/png"), ["GIF", "MP4", "WEBP"]),
    ],
)
def test_what_was_made_can_be_had_in_every_format(
    serving: Gateway, visit: Visit, kind: str, media_type: str, shown: Response, labels: list[str]
) -> None:
    made = {"variant": kind, "media_type": media_type, "url": "/v1/jobs/job_1/content?variant=x", "step": 1}
    serving.answers["GET", "/v1/models"] = {"data": [model(kind, "a-model", voices=["alloy"])]}
    serving.answers["GET", "/v1/jobs"] = page_of(job(kind, outputs=[made]))
    serving.answers["GET", "/v1/jobs/job_1/content"] = shown
    page = visit(task=kind)

    assert [button.proto.label for button in page.get("download_button")] == labels


def test_what_was_made_of_a_picture_that_is_not_here_cannot_be_made_again(serving: Gateway, visit: Visit) -> None:
    serving.answers["GET", "/v1/jobs"] = page_of(job("image", status="cancelled", route="/v1/images/edits"))
    page = visit(task="image")

    assert labelled(page, "Again with another seed").disabled


def test_a_failed_job_says_why_and_can_be_tried_again(serving: Gateway, visit: Visit) -> None:
    failed = job("image", status="failed", error={"message": "the worker died five times"})
    serving.answers["GET", "/v1/jobs"] = page_of(failed)
    serving.answers["POST", "/v1/jobs/job_1/retry"] = failed
    page = visit(task="image")
    labelled(page, "Try again").click().run()

    assert page.error[0].value == "It failed: the worker died five times. Try again."
    assert serving.calls("POST") == ["/v1/jobs/job_1/retry"]


@pytest.mark.parametrize(
    ("field", "advice"), [("input_reference", "Attach another picture."), ("size", "Ask for something else.")]
)
def test_what_would_be_refused_each_time_is_not_tried_again(
    serving: Gateway, visit: Visit, field: str, advice: str
) -> None:
    error = {"message": "That is none.", "code": "invalid_value", "param": field}
    serving.answers["GET", "/v1/jobs"] = page_of(job("image", status="failed", error=error))
    page = visit(task="image")

    assert page.error[0].value == f"It failed: That is none. {advice}"
    assert "Try again" not in [button.label for button in page.button]


def test_what_a_button_could_not_do_is_said(serving: Gateway, visit: Visit) -> None:
    serving.answers["GET", "/v1/jobs"] = page_of(job("image", status="cancelled"))
    serving.answers["DELETE", "/v1/jobs/job_1"] = refusal(503, "jobs cannot be reached", retry_after="3")
    page = visit(task="image")
    labelled(page, "Delete").click().run()

    assert page.error[0].value == "Jobs cannot be reached. Try again in 3 s."


def test_what_goes_wrong_with_all_of_the_page_is_said_once(serving: Gateway, visit: Visit) -> None:
    serving.answers["GET", "/v1/jobs"] = page_of(job("image", status="cancelled"))
    page = visit(task="image")
    for asked in [("DELETE", "/v1/jobs/job_1"), ("GET", "/v1/models")]:
        serving.answers[asked] = refusal(401, "the key has been revoked")
    labelled(page, "Delete").click().run()

    assert [error.value for error in page.error] == ["The key has been revoked. Give a key that is valid."]


def test_the_gallery_looks_at_all_that_was_made(serving: Gateway, visit: Visit) -> None:
    serving.answers["GET", "/v1/audio/voices"] = {"data": []}
    failed = [job("mesh", f"job_t{number}", status="failed") for number in range(1200)]
    cars = [job("image", f"job_{number}", prompt="a car", outputs=[]) for number in range(250)]
    boat = job("image", "job_b", prompt="a boat", outputs=[], created_at=1)
    serving.answers["GET", "/v1/jobs"] = listing(*failed, *cars, boat)
    page = visit("gallery")
    assert "The newest 12" in [caption.value for caption in page.caption]
    page.text_input[0].set_value("boat").run()

    assert [text.value for text in page.text] == ["a boat"]


def test_whatever_is_not_done_is_shown_and_the_older_on_demand(serving: Gateway, visit: Visit) -> None:
    done = [job("image", f"job_{number}", prompt=f"number {number}", outputs=[]) for number in range(12, 2, -1)]
    waiting = job("image", "job_2", status="queued", prompt="number 2", created_at=2)
    first = job("image", "job_1", **UNDER_WAY, prompt="number 1", created_at=1)
    serving.answers["GET", "/v1/jobs"] = listing(*done, waiting, first)
    for each in (waiting, first):
        serving.answers["GET", f"/v1/jobs/{each['id']}"] = each
    page = visit(task="image")
    assert [text.value for text in page.text] == [f"number {number}" for number in (12, 11, 10, 9, 8, 2, 1)]
    labelled(page, "Show more").click().run()

    assert len(page.text) == 12


def test_the_gallery_finds_by_words_and_shows_what_is_done(serving: Gateway, visit: Visit) -> None:
    serving.answers["GET", "/v1/audio/voices"] = {"data": []}
    serving.answers["GET", "/v1/jobs"] = listing(
        job("image", "job_1", prompt="a red boat", outputs=[]),
        job("image", "job_2", prompt="a red car"),
        job("image", "job_3", prompt="a red boat", status="failed"),
    )
    page = visit("gallery")
    page.text_input[0].set_value("BOAT a-model").run()

    assert [text.value for text in page.caption if "found" in text.value] == ["1 found"]
    assert [text.value for text in page.text] == ["a red boat"]
    labelled(page, "Delete").click().run()
    assert serving.calls("DELETE") == ["/v1/jobs/job_1"]
