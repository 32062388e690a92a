"""What the operator does not want asked for is refused before a worker hears of it."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from gateway.callers import Caller
from gateway.errors import ContentRefused, Misconfigured
from gateway.moderation import Moderator
from gateway.policy import Policies, Policy
from gateway.prompts import prompts_of
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
        asyncio.run(policy.check(prompts, Caller(id=key)))
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
    assert all(text in prompt for text, prompt in zip(texts, found, strict=True))


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
