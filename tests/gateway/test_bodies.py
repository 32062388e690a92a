"""Another model's name in a body, and every other byte as it was."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.bodies import MAX_VALUES, with_members
from tests.gateway.conftest import error_of

HELLO = [{"role": "user", "content": "Hello"}]
PLACE = "f3b1d2a7-what-nothing-else-is-called"

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.just("model"), inner, max_size=4),
    max_leaves=12,
)
spaces = st.text(" \t\n\r", max_size=3)


@given(
    st.dictionaries(st.text(), values, max_size=4),
    values,
    st.dictionaries(st.text(), values, max_size=4),
    st.text(),
    st.sampled_from([None, 0, 2, "\t"]),
    st.booleans(),
)
def test_only_the_model_is_another(
    before: dict[str, Any], old: Any, after: dict[str, Any], new: str, indent: Any, is_ascii: bool
) -> None:
    body = {**before, "model": old, **after}
    options: dict[str, Any] = {"indent": indent, "ensure_ascii": is_ascii}
    changed = with_members(json.dumps(body, **options).encode("utf-8", "surrogatepass"), {"model": new})
    assert changed == json.dumps({**body, "model": PLACE}, **options).replace(f'"{PLACE}"', json.dumps(new)).encode()


@given(spaces, spaces, spaces, spaces, spaces)
@example("", "", "", "", "")
def test_spaces_stay_where_they_are(a: str, b: str, c: str, d: str, e: str) -> None:
    body = f'{a}{{{b}"x"{c}:[{{"model": 1}}]{d},{e}"mod\\u0065l"{a}:{b}"old"{c},"y":1e400{d}}}{e}'
    assert with_members(body.encode(), {"model": "new"}) == body.replace('"old"', '"new"').encode()


def test_a_name_that_is_given_twice_is_replaced_twice() -> None:
    assert with_members(b'{"model": "a", "model": "b"}', {"model": "c"}) == b'{"model": "c", "model": "c"}'
    assert with_members(b'{"model": "a", "Model": "b"}', {"model": "c"}) == b'{"model": "c", "Model": "c"}'


def test_what_is_not_there_comes_first() -> None:
    assert with_members(b" {} ", {"model": "a"}) == b' {"model": "a"} '
    changed = with_members(b'{ "model":"a","x" : {} }', {"model": "b", "y": {"z": True}})
    assert changed == b'{"y": {"z": true},  "model":"b","x" : {} }'


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"messages":[' + b"1," * 1_000_000 + b"1]}", id="too many to read"),
        pytest.param(b'{"messages":[' + b"1," * MAX_VALUES + b"1]}", id="too many to complain about"),
        pytest.param(b'{"messages":[[' + b"{}," * MAX_VALUES + b"{}]]}", id="too many further inside"),
    ],
)
def test_a_body_of_countless_values_is_refused_before_each_is_complained_about(
    body: bytes, client: httpx.Client
) -> None:
    answer = client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert error_of(answer)["code"] == "payload_too_large"


def test_a_long_text_full_of_commas_is_no_body_of_countless_values(client: httpx.Client) -> None:
    messages = [{"role": "user", "content": "a, b" * 7_500}] * 4
    assert client.post("/v1/chat/completions", json={"messages": messages}).status_code == 200


@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        ("/v1/chat/completions", {"messages": HELLO, "n": "2"}, "n"),
        ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 2.0}, "max_tokens"),
        ("/v1/chat/completions", {"messages": HELLO, "stream": "true"}, "stream"),
        ("/v1/chat/completions", {"messages": HELLO, "stream": 1}, "stream"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": 7}]}, "messages.0.content"),
        ("/v1/completions", {"prompt": "a", "temperature": "1"}, "temperature"),
        ("/v1/completions", {"prompt": "a", "temperature": True}, "temperature"),
        ("/v1/responses", {"input": "a", "max_output_tokens": "9"}, "max_output_tokens"),
        ("/v1/images/generations", {"prompt": "a", "seed": "7"}, "seed"),
        ("/v1/audio/speech", {"input": "a", "speed": "2"}, "speed"),
        ("/v1/videos", {"prompt": "a", "num_frames": "9"}, "num_frames"),
        ("/v1/3d/generations", {"prompt": "a", "watertight": "yes"}, "watertight"),
    ],
)
def test_in_json_text_is_no_number(client: httpx.Client, route: str, body: dict[str, Any], param: str) -> None:
    refused = client.post(route, json=body)

    assert refused.status_code == 400
    assert (error_of(refused)["code"], error_of(refused)["param"]) == ("invalid_type", param)


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/v1/chat/completions", {"messages": HELLO, "temperature": 1, "stop": "a", "logit_bias": {"5": 1}}),
        ("/v1/chat/completions", {"messages": HELLO, "stop": ["a", "b"]}),
        ("/v1/completions", {"prompt": [[1, 2], [3]]}),
        ("/v1/completions", {"prompt": ["a", "b"], "stop": None}),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}]}),
        ("/v1/images/generations", {"prompt": "a", "guidance_scale": 7, "size": "auto"}),
        ("/v1/audio/speech", {"input": "a", "voice": {"id": "alto"}, "speed": 2}),
    ],
)
def test_lists_and_whole_numbers_stay_what_they_are(client: httpx.Client, route: str, body: dict[str, Any]) -> None:
    assert client.post(route, json=body).status_code == 200


@pytest.mark.parametrize("seconds", ["4", "1.5", 2])
def test_a_film_is_so_many_seconds_long_as_openai_writes_them(client: httpx.Client, seconds: object) -> None:
    film = client.post("/v1/videos", json={"prompt": "a", "fps": 8, "seconds": seconds})
    wrong = client.post("/v1/videos", json={"prompt": "a", "seconds": "soon"})

    assert film.is_success
    assert abs(float(film.json()["seconds"]) - float(str(seconds))) < 0.5
    assert error_of(wrong)["param"] == "seconds"
