"""What the operator does not want asked for is refused before a worker hears of it."""

import asyncio
import json
import unicodedata
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import re2
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from gateway.callers import Caller
from gateway.errors import ContentRefused, Misconfigured
from gateway.moderation import MAX_BYTES, Moderator
from gateway.policy import PORTION, UNSEEN, Policies, Policy, as_seen
from gateway.prompts import Passage, outside_prompts, prompts_of
from services.image.schema import ImageRequest
from services.schema import GenerationRequest
from services.text.schema import ChatRequest, CompletionRequest, ResponseRequest
from services.video.schema import VideoRequest
from tests.gateway.conftest import Gateway, Workers, error_of

DENY = '[global]\ndeny = ["(?i)sword.?fish"]\n'
URL = "http://moderation.test/v1/moderations"
MODERATION = f'[global.moderation]\nurl = "{URL}"\n'
PICTURE = "/generate/image?prompt=a+lighthouse"

Start = Callable[..., Gateway]
Judge = Callable[[httpx.Request], Awaitable[httpx.Response]]


@pytest.fixture
def start_with(start: Start, tmp_path: Path) -> Callable[..., Gateway]:
    """Start a gateway under a policy."""

    def start_gateway(policy: str, **settings: Any) -> Gateway:
        file = tmp_path / "policy.toml"
        file.write_text(policy, encoding="utf-8")
        return start(policy_file=file, **settings)

    return start_gateway


ASKED: list[tuple[str, dict[str, Any] | None]] = [
    ("/generate/text?prompt=a+Swordfish", None),
    ("/generate/audio?prompt=a+sword+fish", None),
    ("/generate/image?prompt=a+swordfish", None),
    ("/generate/bentoml/image?prompt=a+swordfish", None),
    ("/generate/3d?prompt=a+swordfish", None),
    ("/generate/openai/text?prompt=a+swordfish", None),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": "swordfish"}]},
    ),
    ("/v1/completions", {"prompt": "a swordfish"}),
    ("/v1/completions", {"prompt": ["a lighthouse", "a swordfish"]}),
    ("/v1/completions", {"prompt": [1, 2, 3]}),  # which nobody here can read
    ("/v1/responses", {"input": "a swordfish"}),
]


class TestPatterns:
    @pytest.mark.parametrize(("path", "body"), ASKED, ids=[path for path, _ in ASKED])
    def test_every_route_refuses(
        self, start_with: Start, workers: Workers, path: str, body: dict[str, Any] | None
    ) -> None:
        gateway = start_with(DENY, openai_base_url="http://provider.test/v1")
        answer = gateway.client.get(path) if body is None else gateway.client.post(path, json=body)

        assert (answer.status_code, error_of(answer)["code"]) == (400, "content_policy_violation")
        assert "sword" not in answer.text.lower()
        assert answer.headers["x-should-retry"] == "false"
        assert workers.requests == []

    def test_everything_else_passes(self, start_with: Start) -> None:
        assert start_with(DENY).client.get(PICTURE).status_code == 200

    def test_without_a_file_anything_passes(self, gateway: Gateway) -> None:
        assert gateway.client.get("/generate/image?prompt=swordfish").status_code == 200

    @pytest.mark.parametrize(
        "prompt",
        ["\uff53word\uff46ish", "sw\u200bord\u00adfish", "\U0001d42cwordfish", "sword\ufb01sh"],
    )
    def test_a_disguise_does_not_help(self, start_with: Start, prompt: str) -> None:
        answer = start_with(DENY).client.get("/generate/image", params={"prompt": prompt})
        assert answer.status_code == 400

    def test_no_prompt_keeps_the_gateway_busy(self, start_with: Start) -> None:
        """Which `re` would be with these for longer than the universe is old."""
        client = start_with('[global]\ndeny = ["(a+)+$", "(x|xx)*y"]\n').client
        prompt = "a" * 900 + "!" + "x" * 900
        assert client.get("/generate/image", params={"prompt": prompt}).status_code == 200

    def test_patterns_of_a_list_do_not_mix(self) -> None:
        rules = {"global": {"deny": ["(?i)one", "two|three"]}}
        assert refused(rules, "", "ONE")
        assert refused(rules, "", "three")
        assert not refused(rules, "", "TWO")


def refused(policies: dict[str, Any], key: str, *prompts: str) -> bool:
    policy = Policy(Policies.model_validate(policies), Moderator(httpx.AsyncClient(), SecretStr("")))
    try:
        asyncio.run(policy.check([Passage((prompt,)) for prompt in prompts], Caller(id=key)))
    except ContentRefused:
        return True
    return False


RULES: dict[str, Any] = {
    "global": {"deny": ["fish"]},
    "keys": {"3f2c9b7a10d4e856": {"deny": ["fowl"], "allow": ["dog", "cat"]}},
}


class TestKeys:
    @pytest.mark.parametrize(
        ("key", "prompts", "is_refused"),
        [
            ("", ("a fish",), True),
            ("3f2c9b7a10d4e856", ("a dog and a fish",), True),
            ("3f2c9b7a10d4e856", ("a dog and a fowl",), True),
            ("3f2c9b7a10d4e856", ("a horse",), True),
            ("3f2c9b7a10d4e856", ("a dog", "a horse"), True),
            ("3f2c9b7a10d4e856", ("a dog", "a cat"), False),
            ("3f2c9b7a10d4e856", (), False),
            ("key_2", ("a fowl",), False),
        ],
    )
    def test_a_key_has_rules_besides_everyones(self, key: str, prompts: tuple[str, ...], is_refused: bool) -> None:
        assert refused(RULES, key, *prompts) is is_refused


class TestModeration:
    def judged(self, workers: Workers, verdict: httpx.Response | Exception) -> list[httpx.Request]:
        """Let `verdict` be the moderation's answer; give what it is asked."""
        asked: list[httpx.Request] = []
        answer = workers.answer

        async def judge(request: httpx.Request) -> httpx.Response:
            if request.url.host != "moderation.test":
                return await answer(request)
            asked.append(request)
            if isinstance(verdict, Exception):
                raise verdict
            return verdict

        workers.answer = judge
        return asked

    def test_what_it_flags_is_refused(self, start_with: Start, workers: Workers) -> None:
        results = [{"flagged": False, "categories": {}}, {"flagged": True, "categories": {"violence": True}}]
        asked = self.judged(workers, httpx.Response(200, json={"id": "modr-1", "model": "m", "results": results}))
        gateway = start_with(MODERATION + 'model = "m"\n', moderation_key="sk-operator")
        answer = gateway.client.get("/generate/text?prompt=a+picture")

        assert (answer.status_code, error_of(answer)["code"]) == (400, "content_policy_violation")
        [request] = asked
        assert str(request.url) == URL
        assert request.headers["authorization"] == "Bearer sk-operator"
        assert json.loads(request.content) == {"input": ["a picture"], "model": "m"}
        assert len(workers.requests) == 1

    @pytest.mark.parametrize(("flagged", "status"), [(False, 503), (True, 400)])
    def test_what_it_says_nothing_of_has_not_passed(
        self, start_with: Start, workers: Workers, flagged: bool, status: int
    ) -> None:
        self.judged(workers, httpx.Response(200, json={"results": [{"flagged": flagged}]}))
        body = {"prompt": "a lighthouse", "negative_prompt": "a sword"}
        answer = start_with(MODERATION).client.post("/v1/images/generations", json=body)
        assert answer.status_code == status

    def test_what_it_does_not_flag_passes(self, start_with: Start, workers: Workers) -> None:
        asked = self.judged(workers, httpx.Response(200, json={"results": [{"flagged": False}]}))
        assert start_with(MODERATION).client.get(PICTURE).status_code == 200
        assert "authorization" not in asked[0].headers

    @pytest.mark.parametrize(
        "verdict",
        [
            httpx.ConnectError("refused"),
            httpx.ReadTimeout("late"),
            httpx.Response(500),
            httpx.Response(200, content=b"<html>"),
            httpx.Response(200, json={"results": []}),
            httpx.Response(302, headers={"location": URL}),
            httpx.Response(200, content=b'{"results": [{"flagged": false}]}' + b" " * MAX_BYTES),
        ],
        ids=repr,
    )
    @pytest.mark.parametrize(("when_down", "status"), [("refuse", 503), ("allow", 200)])
    def test_the_operator_says_what_happens_when_it_is_down(
        self, start_with: Start, workers: Workers, verdict: Any, when_down: str, status: int
    ) -> None:
        self.judged(workers, verdict)
        answer = start_with(f'{MODERATION}when_down = "{when_down}"\n').client.get(PICTURE)
        assert answer.status_code == status
        if status == 503:
            assert error_of(answer)["code"] == "moderation_unavailable"
            assert answer.headers["retry-after"] == "3"

    def test_one_that_never_answers_is_down_in_time(self, start_with: Start, workers: Workers) -> None:
        workers.never_answers()
        answer = start_with(f"{MODERATION}timeout = 0.05\n").client.get(PICTURE)
        assert (answer.status_code, error_of(answer)["code"]) == (503, "moderation_unavailable")
        assert workers.is_given_up.is_set()

    def test_what_a_pattern_refuses_is_not_told_to_it(self, start_with: Start, workers: Workers) -> None:
        asked = self.judged(workers, httpx.Response(200, json={"results": [{"flagged": False}]}))
        assert start_with(DENY + MODERATION).client.get("/generate/image?prompt=swordfish").status_code == 400
        assert asked == []


@pytest.mark.parametrize(
    ("body", "texts"),
    [
        (ImageRequest(prompt="one", negative_prompt="two"), ["one", "two"]),
        (VideoRequest(prompt="one", negative_prompt="two"), ["one", "two"]),
        (VideoRequest(), []),
        (CompletionRequest(prompt="one"), ["one"]),
        (CompletionRequest.model_validate({"prompt": ["one", "two"]}), ["one", "two"]),
        (
            ChatRequest.model_validate(
                {
                    "messages": [
                        {"role": "system", "content": "one"},
                        {"role": "user", "content": [{"type": "text", "text": "two"}]},
                        {
                            "role": "assistant",
                            "tool_calls": [
                                {
                                    "id": "a",
                                    "type": "function",
                                    "function": {"name": "f", "arguments": '{"b": "three"}'},
                                }
                            ],
                        },
                        {"role": "tool", "tool_call_id": "a", "content": "four"},
                    ],
                    "tools": [{"type": "function", "function": {"name": "f", "description": "five"}}],
                }
            ),
            ["one", "two", "three", "four", "five"],
        ),
        (
            ResponseRequest.model_validate(
                {
                    "instructions": "one",
                    "input": [
                        {"role": "user", "content": "two"},
                        {"type": "function_call", "call_id": "a", "name": "f", "arguments": '{"b": "three"}'},
                        {"type": "function_call_output", "call_id": "a", "output": "four"},
                    ],
                    "tools": [{"type": "function", "name": "f", "description": "five"}],
                }
            ),
            ["one", "two", "three", "four", "five"],
        ),
    ],
)
def test_all_that_a_model_reads_is_a_prompt(body: GenerationRequest, texts: list[str]) -> None:
    found = prompts_of(body)
    assert len(found) == len(texts)
    assert all(text in passage.texts for text, passage in zip(texts, found, strict=True))


CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"\\u0073wordfish": 1}'}}
SPLIT = [{"type": "text", "text": "sword"}, {"type": "text", "text": "fish"}]
TOOL = {"name": "f", "description": "it finds", "parameters": {"properties": {"swordfish": {"type": "string"}}}}
SCHEMA = {"name": "a", "schema": {"enum": ["one", "two\nsword\u00adfish"]}}
HIDDEN: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": SPLIT}]},
    {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [CALL]}]},
    {"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function", "function": TOOL}]},
    {
        "messages": [{"role": "user", "content": "x"}],
        "response_format": {"type": "json_schema", "json_schema": SCHEMA},
    },
]
HIDDEN_OUTSIDE: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "swordfish": "x"}]},
    {"messages": [{"role": "swordfish", "content": "x"}]},
    {"messages": [{"role": "user", "name": "swordfish", "content": "x"}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/swordfish"}}]}]},
    {"swordfish": True},
    {"prompt": ["x", "swordfish"]},
    {"input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "swordfish"}]}]},
    {"input": "x", "tools": [{"type": "function", **TOOL}]},
    {"input": [{"type": "function_call", "name": "f", "arguments": '["\\u0073wordfish"]'}]},
    {"deep": {"deeper": [[{"deepest": ["swordfish"]}]]}},
    {"functions": [TOOL]},
    {"prompt": [1, 2, 3]},
    {"prompt": [[1, 2], [3]]},
]


def test_no_hiding_place_helps(start_with: Start, workers: Workers) -> None:
    gateway = start_with(DENY, openai_base_url="http://provider.test/v1")
    ours = [{"model": "tinyllama-1.1b-chat", **body} for body in HIDDEN]
    theirs = [{"model": "gpt-4o-mini", **body} for body in HIDDEN + HIDDEN_OUTSIDE]
    for body in ours + theirs:
        answer = gateway.client.post("/v1/chat/completions", json=body)
        assert (answer.status_code, error_of(answer)["code"]) == (400, "content_policy_violation"), body
    assert workers.requests == []


def test_what_an_operator_allows_may_be_asked_of_a_provider(start_with: Start, workers: Workers) -> None:
    """The API's own words, names and settings need not be on the list; all that is said must."""
    gateway = start_with('[global]\nallow = ["(?i)cat"]\n', openai_base_url="http://provider.test/v1")
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    said = {"role": "user", "name": "ada", "content": [{"type": "text", "text": "A cat."}, picture]}
    tool = {"type": "function", "function": {"name": "find_cat", "parameters": {"type": "object"}}}
    body = {"model": "gpt-4o-mini", "user": "ada", "stop": "x", "temperature": 1, "messages": [said], "tools": [tool]}

    def ask(**changes: Any) -> int:
        return gateway.client.post("/v1/chat/completions", json={**body, **changes}).status_code

    assert ask() == 200
    assert ask(size="64x64", voice="ada", response_format="mp3") == 200
    assert ask(messages=[said, {"role": "user", "content": "A dog."}]) == 400
    assert ask(messages=[{"role": "user", "content": "A dog.", "comment": "cat"}]) == 400
    assert ask(extra_prompt="A dog.") == 400
    assert ask(tools=[tool, {"type": "function", "function": {"name": "f", "description": "A dog."}}]) == 400
    assert len(workers.requests) == 2


def test_the_policys_words_are_not_the_apis(start_with: Start) -> None:
    """Who denies 'user' or 'object' means what is said, and not who says it."""
    gateway = start_with('[global]\ndeny = ["user|object|content|function"]\n', openai_base_url="http://x.test/v1")
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    body = {"messages": [{"role": "user", "content": "x"}], "tools": [tool]}
    for model in ("tinyllama-1.1b-chat", "gpt-4o-mini"):
        assert gateway.client.post("/v1/chat/completions", json={"model": model, **body}).status_code == 200


def test_tokens_are_only_refused_where_there_is_something_to_look_for(start: Start) -> None:
    gateway = start(openai_base_url="http://provider.test/v1")
    body = {"model": "gpt-4o-mini", "prompt": [1, 2]}
    assert gateway.client.post("/v1/completions", json=body).status_code == 200


class TestAsSeen:
    @given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.integers(PORTION - 30, PORTION + 5))
    def test_portions_change_nothing(self, text: str, ahead: int) -> None:
        """Unless somebody piles more than 30 marks on a letter."""
        whole = "字" * ahead + text
        unseen: str = re2.sub(UNSEEN, "", unicodedata.normalize("NFKC", re2.sub(UNSEEN, "", whole)))
        assert asyncio.run(as_seen(whole)) == unseen

    @pytest.mark.parametrize("prompt", ["\ufdfa" * 200_000, "\u33ff\ufdfa" * 200_000])
    def test_what_grows_without_end_is_refused(self, prompt: str) -> None:
        with pytest.raises(ContentRefused):
            asyncio.run(as_seen(prompt))

    def test_a_pile_of_marks_is_cut(self) -> None:
        assert len(asyncio.run(as_seen("a" + "\u0323\u0301\uff9e" * 1_000_000))) < 40


def test_deep_bodies_are_read_to_the_bottom() -> None:
    body: Any = "bottom"
    for _ in range(150):
        body = [{"a": body}]
    assert any("bottom" in passage.texts for passage in outside_prompts({"x": body}))


def test_a_body_that_nobody_has_thought_of_does_not_pass_unseen() -> None:
    with pytest.raises(TypeError):
        prompts_of(GenerationRequest())


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ('[global]\ndeny = ["ok", "(?=a)"]', "invalid perl operator"),
        ('[global]\nallow = ["("]', "missing"),
        ("[global]\ndenied = []", "denied"),
        ('[everyone]\ndeny = ["a"]', "everyone"),
        ('[global.moderation]\nurl = "ftp://x"', "url"),
        ("[global", "Expected"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_at_the_start(start_with: Start, policy: str, said: str) -> None:
    with pytest.raises(Misconfigured, match=said.replace("(", r"\(")):
        start_with(policy)
