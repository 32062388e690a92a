"""Text as it is written, without a browser."""

import json
from collections.abc import Callable
from threading import Event

from starlette.responses import Response
from streamlit.testing.v1 import AppTest

from tests.ui.conftest import LONG, model
from tests.ui.gateway import Gateway, refusal
from ui.chat import CHAT
from ui.talk import Chunks

Visit = Callable[..., AppTest]
ROUTE = ("POST", "/v1/chat/completions")


def streamed(*chunks: object) -> Response:
    events = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
    headers = {"content-type": "text/event-stream", "x-model": "chat", "x-seed": "7"}
    return Response(f"{events}data: [DONE]\n\n", headers=headers)


def piece(text: str) -> dict[str, object]:
    return {"choices": [{"delta": {"content": text}}]}


def asked(gateway: Gateway, visit: Visit, answer: Response) -> AppTest:
    gateway.answers["GET", "/v1/models"] = {"data": [model("text", "chat")]}
    gateway.answers[ROUTE] = answer
    return visit().chat_input[0].set_value("hello").run()


def test_an_answer_is_shown_with_seed_and_tokens_and_the_conversation_goes_on(gateway: Gateway, visit: Visit) -> None:
    usage = {"choices": [], "usage": {"completion_tokens": 2}}
    page = asked(gateway, visit, streamed(piece("**good"), piece(" day"), usage))

    assert [text.value for text in page.text] == ["hello", "**good day"]
    assert any("`chat` · seed 7 · 2 tokens · first word after" in each.value for each in page.caption)
    page.chat_input[0].set_value("and?").run()
    *_, body = (json.loads(body) for method, path, body, _ in gateway.asked if (method, path) == ROUTE)
    assert body["messages"] == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "**good day"},
        {"role": "user", "content": "and?"},
    ]


def test_the_last_question_is_asked_again_with_a_seed(gateway: Gateway, visit: Visit) -> None:
    page = asked(gateway, visit, streamed(piece("good day")))
    next(button for button in page.button if button.label == "Again with another seed").click().run()

    first, again = (json.loads(body) for method, path, body, _ in gateway.asked if (method, path) == ROUTE)
    assert again["messages"] == first["messages"]
    assert "seed" not in first
    assert isinstance(again["seed"], int)


def test_an_answer_stays_when_another_in_its_place_is_refused(gateway: Gateway, visit: Visit) -> None:
    page = asked(gateway, visit, streamed(piece("good day")))
    gateway.answers[ROUTE] = refusal(400, "too many tokens")
    next(button for button in page.button if button.label == "Again with another seed").click().run()

    assert page.error[0].value == "Too many tokens."
    assert [text.value for text in page.text] == ["hello", "good day"]
    assert not page.chat_input[0].proto.set_value  # what is written there meanwhile stays


def test_an_answer_comes_back_when_another_is_stopped_before_its_first_word(gateway: Gateway, visit: Visit) -> None:
    page = asked(gateway, visit, streamed(piece("good day")))
    is_over = Event()

    def send(_: object) -> Chunks:
        is_over.wait(LONG)
        yield from ()

    said = page.session_state[CHAT]
    said.ask("hello", {}, send, said.turns[-1])
    said.stop()
    page.run()
    is_over.set()

    assert [text.value for text in page.text] == ["hello", "good day"]
    assert not page.chat_input[0].proto.set_value
    assert not page.error


def test_an_answer_that_breaks_off_says_so_and_keeps_what_came(gateway: Gateway, visit: Visit) -> None:
    page = asked(gateway, visit, streamed(piece("good"), {"error": {"message": "the worker died"}}))

    assert [error.value for error in page.error] == ["The worker died."]
    later = page.run()
    assert [text.value for text in later.text] == ["hello", "good"]
    assert [error.value for error in later.error] == ["The worker died."]  # half an answer never looks whole


def test_a_refused_question_is_not_part_of_the_conversation(gateway: Gateway, visit: Visit) -> None:
    page = asked(gateway, visit, refusal(400, "the prompt is too long"))

    assert page.error[0].value == "The prompt is too long."
    assert list(page.run().text) == []
