"""Providers' models beside our own: where a body goes, what comes back, and who is asked next."""

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from gateway.breaker import NUM_FAILURES
from gateway.errors import Misconfigured
from tests.gateway.conftest import LONG, Gateway, error_of, raw_worker, served
from tests.gateway.test_keys import bearer, create
from tests.gateway.test_receipts import TOKEN, away, entry_of, post, receipt

KEY = "sk-very-secret-0123456789"
CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Hi 世界"}]

Start = Callable[..., Gateway]


@dataclass
class Asked:
    path: str
    query: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Outside:
    """A server that answers as it is told."""

    status: int = 200
    chunks: tuple[bytes, ...] = (b'{"ok": true}',)
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "application/json"})
    hangs_midway: bool = False
    asked: list[Asked] = field(default_factory=list)
    has_seen_leaving: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        body = b""
        while (message := await receive())["more_body"]:
            body += message["body"]
        if scope["method"] == "POST":
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            self.asked.append(Asked(scope["path"], scope["query_string"].decode(), headers, body + message["body"]))
        headers_out = [(name.encode(), value.encode()) for name, value in self.headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": headers_out})
        for chunk in self.chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        if self.hangs_midway:
            while (await receive())["type"] != "http.disconnect":
                pass
            self.has_seen_leaving.set()
        await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def outsides() -> Iterator[tuple[Outside, Outside]]:
    with ExitStack() as stack:
        both = (Outside(), Outside())
        for outside in both:
            outside.url = stack.enter_context(served(outside))
        yield both


@pytest.fixture
def first(outsides: tuple[Outside, Outside]) -> Outside:
    return outsides[0]


@pytest.fixture
def second(outsides: tuple[Outside, Outside]) -> Outside:
    return outsides[1]


@pytest.fixture
def run(start: Start, first: Outside, second: Outside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Start a gateway with a file of providers; our own workers are `second` as well."""
    monkeypatch.setenv("PROVIDER_KEY", KEY)

    def run_gateway(
        more: str = "", base_url: str | None = None, outside_fallbacks: str = "", **changes: Any
    ) -> Gateway:
        file = tmp_path / "providers.toml"
        file.write_text(
            f'[[models]]\nid = "gpt"\nbase_url = "{base_url or first.url + "/v1"}"\nmodel = "upstream-1"\n'
            f'api_key_env = "PROVIDER_KEY"\n{more}\n'
            f'[[models]]\nid = "other"\nbase_url = "{second.url}/v1/"\nmodel = "upstream-2"\n'
            f"[fallbacks]\n{outside_fallbacks}\n"
        )
        return start(second.url, providers_file=file, **changes)

    return run_gateway


@pytest.fixture
def refusing() -> Iterator[str]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/v1"


@pytest.fixture(autouse=True)
def _the_key_is_in_no_log(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.DEBUG)
    yield
    assert KEY not in caplog.text


def ask(gateway: Gateway, model: str = "gpt", path: str = CHAT, **more: Any) -> httpx.Response:
    response = gateway.client.post(path, json={"model": model, "messages": MESSAGES, **more})
    assert KEY not in response.text + str(response.headers)
    return response


class TestWhereItGoes:
    @pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses"])
    def test_a_body_goes_to_the_provider_with_another_model_and_no_other_change(
        self, run: Start, first: Outside, path: str
    ) -> None:
        body = {"messages": MESSAGES, "model": "gpt", "of_theirs": {"model": "gpt"}, "reasoning_effort": "low"}
        content = json.dumps(body, indent=3).encode()
        theirs = {"content-type": "application/json", "cookie": "a=b", "authorization": "Bearer ours", "x-secret": "1"}
        response = run().client.post(path, content=content, headers=theirs)

        assert (response.status_code, response.content) == (200, b'{"ok": true}')
        [asked] = first.asked
        assert (asked.path, asked.query) == (path, "")
        assert asked.body == content.replace(b'"model": "gpt",\n   "of', b'"model": "upstream-1",\n   "of')
        assert asked.headers["authorization"] == f"Bearer {KEY}"
        assert set(asked.headers) == {
            *("host", "accept", "accept-encoding", "authorization", "content-type", "content-length"),
        }

    def test_azure_has_deployments_and_a_key_header_of_its_own(self, run: Start, first: Outside) -> None:
        gateway = run('kind = "azure"\napi_version = "2024-10-21"', base_url=first.url)
        for path in (CHAT, "/v1/responses"):
            assert ask(gateway, path=path).status_code == 200
        assert [(asked.path, asked.query) for asked in first.asked] == [
            ("/openai/deployments/upstream-1/chat/completions", "api-version=2024-10-21"),
            ("/openai/responses", "api-version=2024-10-21"),
        ]
        assert first.asked[0].headers["api-key"] == KEY
        assert "authorization" not in first.asked[0].headers

    @pytest.mark.parametrize("model", ["gpt", "tinyllama-1.1b-chat"])
    def test_a_header_in_no_encoding_is_no_failure(self, run: Start, model: str) -> None:
        content = json.dumps({"model": model, "messages": MESSAGES}).encode()
        headers = [(b"content-type", b"application/json"), (b"accept", b"text/\xe9")]
        assert run().client.post(CHAT, content=content, headers=headers).status_code == 200

    def test_our_models_go_to_our_workers_as_they_came(self, run: Start, first: Outside, second: Outside) -> None:
        gateway = run()
        assert ask(gateway, "tinyllama-1.1b-chat").status_code == 200
        assert json.loads(second.asked[0].body)["model"] == "tinyllama-1.1b-chat"
        assert gateway.client.post(CHAT, json={"messages": MESSAGES}).status_code == 200
        assert ask(gateway, "tinyllama-1.1b-chat", reasoning_effort="low").status_code == 400
        assert (len(first.asked), len(second.asked)) == (0, 2)

    @pytest.mark.parametrize("model", ["nobody", "bark-small", "x" * 5000])
    @pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses"])
    def test_an_unknown_model_is_a_404_that_lists_the_others(
        self, run: Start, first: Outside, second: Outside, path: str, model: str
    ) -> None:
        response = ask(run(), model, path=path)
        error = error_of(response)
        assert (response.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
        assert error["message"].endswith("choose one of: chat, tinyllama-1.1b-chat, gpt, other")
        assert first.asked == second.asked == []

    @pytest.mark.parametrize("model", [5, "", [], {}])
    def test_what_is_no_name_is_a_bad_request(self, run: Start, model: Any) -> None:
        response = ask(run(), model)
        assert (response.status_code, error_of(response)["param"]) == (400, "model")

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"5", b'{"model": "gpt"', b"\xff", b"[" * 100_000])
    def test_what_is_no_json_object_is_a_bad_request(self, run: Start, first: Outside, content: bytes) -> None:
        response = run().client.post(CHAT, content=content, headers={"content-type": "application/json"})
        assert response.status_code == 400
        assert "the body must be" in error_of(response)["message"]
        assert first.asked == []


class TestWhatComesBack:
    def test_a_stream_comes_untouched_and_names_the_model(self, run: Start, first: Outside) -> None:
        first.chunks = (b"data: {}\n\n", b": ping\n\n", b"data: [DONE]\n\n")
        first.headers = {"content-type": "text/event-stream", "set-cookie": "a=b", "x-model": "theirs", "x-seed": "1"}
        response = ask(run(), stream=True)
        assert response.content == b"".join(first.chunks)
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers.get_list("x-model") == ["gpt"]
        assert not {"set-cookie", "x-seed"} & set(response.headers)

    def test_leaving_midway_ends_the_providers_work(self, run: Start, first: Outside) -> None:
        first.hangs_midway = True
        gateway = run()
        with gateway.client.stream("POST", CHAT, json={"model": "gpt", "messages": MESSAGES}) as response:
            assert next(response.iter_raw())
        assert first.has_seen_leaving.wait(LONG)
        assert gateway.rows()[0]["ending"] == "left"

    @pytest.mark.parametrize(
        ("status", "ours", "code"),
        [
            *((status, 502, "provider_failed") for status in (301, 401, 403, 404, 500, 503)),
            (429, 429, "provider_busy"),
        ],
    )
    def test_its_errors_have_honest_statuses(
        self, run: Start, first: Outside, status: int, ours: int, code: str
    ) -> None:
        first.status, first.chunks = status, (json.dumps({"error": {"message": f"no {KEY}", "type": "x"}}).encode(),)
        first.headers = {"www-authenticate": KEY, "location": "http://169.254.169.254/"}
        response = ask(run())
        assert (response.status_code, error_of(response)["code"]) == (ours, code)
        assert len(first.asked) == 1
        assert not {"www-authenticate", "location"} & set(response.headers)

    @pytest.mark.parametrize("status", [400, 413, 422])
    def test_what_is_wrong_with_the_body_is_told_in_its_words(self, run: Start, first: Outside, status: int) -> None:
        error = {"message": "too hot", "type": "invalid_request_error", "param": "temperature", "code": "invalid_value"}
        first.status, first.chunks = status, (json.dumps({"error": error}).encode(),)
        response = ask(run(), temperature=9)
        assert (response.status_code, error_of(response)["param"]) == (status, "temperature")
        assert error_of(response)["message"] == "too hot"


class TestFallback:
    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_the_next_is_asked_where_one_refuses(
        self, run: Start, first: Outside, second: Outside, status: int
    ) -> None:
        first.status = status
        response = ask(run('fallbacks = ["other"]'))
        assert (response.status_code, response.headers["x-model"]) == (200, "other")
        assert json.loads(second.asked[0].body) == {"model": "upstream-2", "messages": MESSAGES}

    def test_the_next_is_asked_where_nobody_takes_the_connection(
        self, run: Start, second: Outside, refusing: str
    ) -> None:
        response = ask(run('fallbacks = ["other"]', base_url=refusing))
        assert (response.status_code, response.headers["x-model"]) == (200, "other")

    def test_the_next_may_be_ours(self, run: Start, second: Outside, refusing: str) -> None:
        second.headers["x-model"] = "tinyllama-1.1b-chat"
        response = ask(run('fallbacks = ["tinyllama-1.1b-chat"]', base_url=refusing))
        assert (response.status_code, response.headers["x-model"]) == (200, "tinyllama-1.1b-chat")
        assert json.loads(second.asked[0].body)["model"] == "tinyllama-1.1b-chat"

    @pytest.mark.parametrize("status", [400, 401, 404])
    def test_nobody_else_is_asked_where_that_would_not_help(
        self, run: Start, first: Outside, second: Outside, status: int
    ) -> None:
        first.status = status
        assert ask(run('fallbacks = ["other"]')).status_code >= 400
        assert (len(first.asked), second.asked) == (1, [])

    def test_nobody_else_is_asked_where_it_may_have_begun(self, run: Start, second: Outside) -> None:
        with raw_worker(b"") as hanging_up:
            response = ask(run('fallbacks = ["other"]', base_url=hanging_up.url))
            assert (response.status_code, error_of(response)["code"]) == (502, "provider_failed")
            assert (hanging_up.num_requests, second.asked) == (1, [])

    def test_nobody_else_is_asked_once_an_answer_has_begun(self, run: Start, first: Outside, second: Outside) -> None:
        first.chunks, first.headers = (b"half",), {"content-length": "100"}
        with pytest.raises(httpx.RemoteProtocolError):
            ask(run('fallbacks = ["other"]'))
        assert second.asked == []

    def test_the_last_ones_words_are_told_when_all_refuse(self, run: Start, first: Outside, second: Outside) -> None:
        first.status, second.status = 500, 429
        assert ask(run('fallbacks = ["other"]')).status_code == 429
        assert (len(first.asked), len(second.asked)) == (1, 1)

    def test_what_is_not_in_our_contract_passes_our_models_over(
        self, run: Start, second: Outside, refusing: str
    ) -> None:
        gateway = run('fallbacks = ["tinyllama-1.1b-chat"]', base_url=refusing)
        response = ask(gateway, reasoning_effort="low")
        assert (response.status_code, error_of(response)["code"]) == (502, "provider_failed")
        assert second.asked == []
        gateway.close()
        response = ask(run('fallbacks = ["tinyllama-1.1b-chat", "other"]', base_url=refusing), reasoning_effort="low")
        assert (response.status_code, response.headers["x-model"]) == (200, "other")

    @pytest.mark.parametrize("named", [{}, {"model": "chat"}])
    def test_our_models_fall_back_too(self, run: Start, first: Outside, second: Outside, named: dict[str, str]) -> None:
        """Our own workers are `second`."""
        second.status = 503
        gateway = run(outside_fallbacks='"chat" = ["gpt"]')
        response = gateway.client.post(CHAT, json={**named, "messages": MESSAGES})
        assert (response.status_code, response.headers["x-model"]) == (200, "gpt")
        assert json.loads(first.asked[0].body) == {"model": "upstream-1", "messages": MESSAGES}
        assert gateway.client.post(CHAT, json={**named, "messages": MESSAGES, "of_theirs": 1}).status_code == 400

    def test_a_key_gets_to_no_model_by_a_way_round(self, run: Start, first: Outside, second: Outside) -> None:
        second.status = 503
        gateway = run(outside_fallbacks='"chat" = ["gpt"]')
        admin = create(gateway, scopes=["admin"])["key"]
        key = create(gateway, admin, models=["chat"])["key"]
        assert gateway.client.post(CHAT, json={"messages": MESSAGES}, headers=bearer(key)).status_code == 503
        assert first.asked == []


USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
ANSWER = json.dumps({"choices": [{"message": {"content": "Hi"}}], "usage": USAGE}).encode()
DELTA, DONE = b'data: {"choices": [{"delta": {"content": "Hi"}}], "usage": null}\n\n', b"data: [DONE]\n\n"
LAST = b"data: " + json.dumps({"choices": [], "usage": USAGE}).encode() + b"\n\n"
EVENTS = {"content-type": "text/event-stream"}


class TestMetering:
    def asks(self, gateway: Gateway, **more: Any) -> tuple[httpx.Response, dict[str, float], dict[str, Any]]:
        """Ask under budgets; the answer, what is used of them in the end, and the row in the log."""
        admin = bearer(create(gateway, scopes=["admin"])["key"])
        key = create(gateway, admin["authorization"][7:], budgets={"day": {"tokens": 1e6, "money": 1000}})
        body = {"model": "gpt", "messages": MESSAGES, **more}
        response = gateway.client.post(CHAT, json=body, headers=bearer(key["key"]))
        for _ in range(1000):
            used = gateway.client.get(f"/v1/keys/{key['id']}", headers=admin).json()["used"]["day"]
            rows = gateway.client.get("/v1/usage", headers=admin).json()["data"]
            [row] = [row for row in rows if row["modality"]] or [{}]
            if row.get("units", {}).get("tokens") == used["tokens"]:
                return response, used, row
        raise AssertionError(f"{used} are used after {row}")

    @pytest.mark.parametrize(
        ("more", "chunks", "seen", "asked"),
        [
            ({}, (ANSWER,), ANSWER, {}),
            ({"stream": False}, (ANSWER[:50], ANSWER[50:]), ANSWER, {}),
            (
                {"stream": True},
                (DELTA, LAST[:20], LAST[20:] + DONE),
                DELTA + DONE,
                {"stream_options": {"include_usage": True}},
            ),
            (
                {"stream": True, "stream_options": {"include_usage": False, "of_theirs": 1}},
                (DELTA + LAST, DONE),
                DELTA + DONE,
                {"stream_options": {"include_usage": True, "of_theirs": 1}},
            ),
            ({"stream": True, "stream_options": {"include_usage": True}}, (DELTA, LAST, DONE), DELTA + LAST + DONE, {}),
        ],
        ids=["whole", "in pieces", "a stream", "a stream without", "a stream with"],
    )
    def test_what_a_provider_says_is_counted(
        self,
        run: Start,
        first: Outside,
        tmp_path: Path,
        more: dict[str, Any],
        chunks: tuple[bytes, ...],
        seen: bytes,
        asked: dict[str, Any],
    ) -> None:
        prices = tmp_path / "prices.toml"
        prices.write_text("[models]\ngpt = 0.5\n")
        first.chunks, first.headers = chunks, EVENTS if more.get("stream") else first.headers
        response, used, row = self.asks(run(prices_file=prices), max_tokens=100, **more)

        assert response.content == seen
        sent = {"model": "upstream-1", "messages": MESSAGES, "max_tokens": 100, **more, **asked}
        assert json.loads(first.asked[0].body) == sent
        assert row["units"] == {"tokens": 18, "prompt_tokens": 11, "completion_tokens": 7}
        assert (row["model"], row["modality"], row["ending"]) == ("gpt", "text", "complete")
        assert used == {"tokens": 18, "money": 9}

    def test_a_fallback_is_paid_at_its_own_price(
        self, run: Start, first: Outside, second: Outside, tmp_path: Path
    ) -> None:
        prices = tmp_path / "prices.toml"
        prices.write_text("[models]\ngpt = 0.01\nother = 0.5\n")
        first.status, second.chunks = 500, (ANSWER,)
        _, used, row = self.asks(run('fallbacks = ["other"]', prices_file=prices), max_tokens=10)
        assert (row["model"], used) == ("other", {"tokens": 18, "money": 9})

    def test_our_workers_receipt_frees_nothing_of_what_a_fallback_may_use(
        self, run: Start, first: Outside, second: Outside
    ) -> None:
        """Our own workers are `second`."""
        second.status, first.hangs_midway = 503, True
        gateway = run(outside_fallbacks='"chat" = ["gpt"]', internal_token=TOKEN)
        admin = bearer(create(gateway, scopes=["admin"])["key"])
        key = create(gateway, admin["authorization"][7:], budgets={"day": {"tokens": 1000}})
        body = {"messages": MESSAGES, "max_tokens": 600, "stream": True}
        with gateway.client.stream("POST", CHAT, json=body, headers=bearer(key["key"])) as answer:
            told = receipt(answer.headers["x-request-id"], modality="text", units={}, ending="failed")
            assert post(gateway, told).status_code == 204
            used = gateway.client.get(f"/v1/keys/{key['id']}", headers=admin).json()["used"]["day"]["tokens"]
            refused = gateway.client.post(CHAT, json=body, headers=bearer(key["key"]))
        assert used >= 600
        assert error_of(refused)["code"] == "insufficient_quota"

    def test_what_the_dearest_of_a_chain_may_cost_is_reserved(
        self, run: Start, first: Outside, second: Outside, tmp_path: Path
    ) -> None:
        prices = tmp_path / "prices.toml"
        prices.write_text("[models]\nother = 50\n")
        gateway = run('fallbacks = ["other"]', prices_file=prices)
        admin = create(gateway, scopes=["admin"])["key"]
        key = create(gateway, admin, budgets={"day": {"money": 100}})["key"]
        body = {"model": "gpt", "messages": MESSAGES, "max_tokens": 10}
        refused = gateway.client.post(CHAT, json=body, headers=bearer(key))
        assert error_of(refused)["code"] == "insufficient_quota"
        assert first.asked == second.asked == []

    def test_a_server_that_knows_no_such_option_is_not_asked(self, run: Start, first: Outside) -> None:
        first.chunks, first.headers = (DELTA, LAST, DONE), EVENTS
        response = ask(run("asks_for_usage = false"), stream=True)
        assert response.content == DELTA + LAST + DONE
        assert "stream_options" not in json.loads(first.asked[0].body)

    def test_a_pictures_tokens_give_no_pixel_steps_back(self, run: Start, first: Outside) -> None:
        """They are no measure of them: what was reserved counts."""
        first.chunks = (json.dumps({"data": [], "usage": {"input_tokens": 3, "output_tokens": 4}}).encode(),)
        gateway = run('task = "image"')
        admin = bearer(create(gateway, scopes=["admin"])["key"])
        key = create(gateway, admin["authorization"][7:], budgets={"day": {"pixel_steps": 1e12}})
        body = {"model": "gpt", "prompt": "x", "size": "64x64", "n": 1}
        answer = gateway.client.post("/v1/images/generations", json=body, headers=bearer(key["key"]))
        assert answer.status_code == 200
        gateway.close()
        shown = run('task = "image"').client.get(f"/v1/keys/{key['id']}", headers=admin)
        assert shown.json()["used"]["day"]["pixel_steps"] >= 64 * 64

    def test_a_database_that_was_away_costs_no_receipt(
        self, run: Start, first: Outside, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        first.chunks, gateway = (ANSWER,), run()
        with away(tmp_path, "reservations"):
            ask(gateway)
            for _ in range(1000):
                if "cannot write" in caplog.text:
                    break
                gateway.client.get("/livez")
            assert "cannot write" in caplog.text
        request_id = ask(gateway).headers["x-request-id"]
        for _ in range(1000):
            if entry_of(gateway, request_id)["units"]:
                return
        raise AssertionError("receipts are written no more")

    def test_the_books_way_counts_too(self, start: Start, first: Outside) -> None:
        first.chunks = (ANSWER,)
        gateway = start(first.url, openai_base_url=f"{first.url}/v1", openai_model="gpt")
        assert gateway.client.get("/generate/openai/text?prompt=Hi").text == "Hi"
        for _ in range(1000):
            [*_, row] = gateway.client.get("/v1/usage").json()["data"] or [{"units": {}}]
            if row["units"]:
                break
        assert row["units"]["tokens"] == 18


class TestBreaker:
    def test_who_fails_again_and_again_is_left_alone(self, run: Start, first: Outside) -> None:
        first.status = 500
        gateway = run()
        statuses = [ask(gateway).status_code for _ in range(NUM_FAILURES + 3)]
        assert statuses == [502] * NUM_FAILURES + [503] * 3
        assert len(first.asked) == NUM_FAILURES

        response = ask(gateway)
        assert error_of(response)["code"] == "provider_unavailable"
        assert int(response.headers["retry-after"]) > 0
        assert response.headers["x-should-retry"] == "true"

    def test_others_take_over_meanwhile(self, run: Start, first: Outside, second: Outside) -> None:
        first.status = 500
        gateway = run('fallbacks = ["other"]')
        for _ in range(NUM_FAILURES + 3):
            assert ask(gateway).headers["x-model"] == "other"
        assert (len(first.asked), len(second.asked)) == (NUM_FAILURES, NUM_FAILURES + 3)

    def test_what_the_callers_do_wrong_does_not_count(self, run: Start, first: Outside) -> None:
        gateway = run()
        for first.status in [400, 429] * NUM_FAILURES:
            ask(gateway)
        first.status = 200
        assert ask(gateway).status_code == 200


def test_a_file_that_does_not_fit_is_refused_at_the_start(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "providers.toml"
    file.write_text('[[models]]\nid = "gpt"\n')
    with pytest.raises(Misconfigured, match="base_url"):
        start(providers_file=file)
