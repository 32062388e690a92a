"""Requests name adapters of a model, and share its forwards whatever they name."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from tests.live.conftest import LONG, TOKEN, System

NAMES = (None, "strong", "faint")
LONG_ENOUGH = 400  # tokens, for requests to meet


def written(client: httpx.Client, adapter: str | None) -> str:
    body = {"model": "adapted", "prompt": "the quick brown fox", "max_tokens": LONG_ENOUGH, "adapter": adapter}
    answer = client.post("/v1/completions", json=body)
    assert answer.is_success, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


def test_each_writes_by_the_adapter_that_it_names_in_forwards_that_they_share(
    system: System, client: httpx.Client
) -> None:
    alone = [written(client, name) for name in NAMES]
    forwards, rows = (system.count("text", f"atelier_batch_size_{name}") for name in ("count", "sum"))
    with ThreadPoolExecutor(len(NAMES)) as pool:
        together = list(pool.map(lambda name: written(client, name), NAMES))
    shared = system.count("text", "atelier_batch_size_sum") - rows
    asked = system.count("text", "atelier_batch_size_count") - forwards

    assert together == alone
    assert len(set(alone)) == len(NAMES)
    assert shared > 1.2 * asked


def test_every_route_takes_one_and_the_list_has_them(system: System) -> None:
    with openai.OpenAI(base_url=f"{system.gateway}/v1", api_key="-", max_retries=0, timeout=LONG) as client:
        listed = client.models.retrieve("adapted")
        said, answered = [], []
        for name in NAMES:
            more = {"adapter": name}
            messages: Any = [{"role": "user", "content": "Hello"}]
            chat = client.chat.completions.create(model="adapted", messages=messages, extra_body=more)
            said.append(chat.choices[0].message.content)
            answered.append(client.responses.create(model="adapted", input="Hello", extra_body=more).output_text)
        with pytest.raises(openai.BadRequestError) as refusal:
            client.completions.create(model="adapted", prompt="a", extra_body={"adapter": "loud"})
        with pytest.raises(openai.BadRequestError, match=r"no adapter 'strong' for model .*; leave it out"):
            client.completions.create(model="tinyllama-1.1b-chat", prompt="a", extra_body={"adapter": "strong"})
    of_the_worker = httpx.get(f"{system.worker('text')}/v1/models", headers=TOKEN).json()["data"]

    assert [each["name"] for each in getattr(listed, "adapters", [])] == ["strong", "faint"]
    assert {model["id"]: model["adapters"] for model in of_the_worker}["adapted"] == ["strong", "faint"]
    assert len(set(said)) == len(NAMES)
    assert answered == said
    assert (refusal.value.code, refusal.value.param) == ("unknown_adapter", "adapter")
    assert "choose one of: strong, faint" in refusal.value.message
