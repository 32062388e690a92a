"""The official SDK lists what is served."""

import asyncio

import httpx
import openai
import pytest

from tests.live.conftest import LONG, TASKS, TOKEN, System


def test_models_are_listed_with_what_there_is_to_know(system: System) -> None:
    with openai.OpenAI(base_url=f"{system.gateway}/v1", api_key="-", max_retries=0, timeout=LONG) as client:
        listed = {model.id: model for model in client.models.list()}
        one = client.models.retrieve("tiny-sd")
        with pytest.raises(openai.NotFoundError, match="bark-small") as refusal:
            client.models.retrieve("org/model")

    assert {getattr(model, "task", None) for model in listed.values()} == set(TASKS)
    assert {getattr(model, "state", None) for model in listed.values()} == {"ready"}
    assert min(getattr(model, "num_bytes", 0) for model in listed.values()) > 10_000
    assert one == listed["tiny-sd"]
    assert (one.object, one.owned_by, getattr(one, "defaults", {})["size"]) == ("model", "atelier", "64x64")
    assert (getattr(one, "is_default", None), getattr(one, "commercial_use", None)) == (True, True)
    assert refusal.value.code == "model_not_found"


def test_the_async_client_and_a_worker_alone_list_them_too(system: System) -> None:
    async def ids(url: str) -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-", default_headers=TOKEN) as client:
            return [model.id async for model in client.models.list()]

    assert asyncio.run(ids(system.worker("mesh"))) == ["shap-e", "shap-e-img2img"]
    assert set(asyncio.run(ids(system.gateway))) > {"shap-e", "tinyllama-1.1b-chat"}


def test_an_operator_lets_a_model_leave_and_come_back(system: System) -> None:
    def state() -> str:
        found: str = httpx.get(f"{system.gateway}/v1/models/shap-e-img2img").json()["state"]
        return found

    def tell(verb: str) -> None:
        told = httpx.post(f"{system.gateway}/v1/models/shap-e-img2img/{verb}")
        assert (told.status_code, told.json().get("id")) == (202, "shap-e-img2img"), told.text

    tell("unload")
    system.wait(lambda: state() == "cold")
    tell("load")
    system.wait(lambda: state() == "ready")
    refused = httpx.post(f"{system.worker('mesh')}/v1/models/shap-e/unload")
    unknown = httpx.post(f"{system.worker('mesh')}/v1/models/none/unload", json={}, headers=TOKEN)

    assert (refused.status_code, unknown.status_code) == (401, 404)
