"""What the browser's player is given."""

from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from tests.ui.gateway import Gateway, refusal
from ui.key import COOKIE
from ui.sound import PATH, player


def browser(url: str) -> TestClient:
    return TestClient(Starlette(routes=[Route(PATH, player(url))]), cookies={COOKIE: "atl_1_secret"})


def test_speech_is_asked_for_with_the_key_of_the_cookie_and_comes_as_it_is(gateway: Gateway) -> None:
    part = {"content-range": "bytes 0-3/9", "accept-ranges": "bytes", "x-internal": "secret"}
    gateway.answers["GET", "/v1/jobs/job_1/sound"] = Response(b"RIFF", 206, part, "audio/wav")
    answer = browser(gateway.url).get("/sound/job_1", headers={"range": "bytes=0-3"})

    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (206, b"RIFF", "audio/wav")
    assert answer.headers["content-range"] == part["content-range"]
    assert "x-internal" not in answer.headers
    [(_, _, _, headers)] = gateway.asked
    assert (headers["authorization"], headers["range"]) == ("Bearer atl_1_secret", "bytes=0-3")


def test_what_the_gateway_refuses_is_refused(gateway: Gateway) -> None:
    gateway.answers["GET", "/v1/jobs/job_1/sound"] = refusal(401, "this key opens nothing")
    assert browser(gateway.url).get("/sound/job_1").status_code == 401


def test_no_other_route_of_the_gateway_can_be_asked(gateway: Gateway) -> None:
    browser(gateway.url).get("/sound/..%2F..%2Fkeys%3Fa=")
    assert all(path.startswith("/v1/jobs/") and path.endswith("/sound") for path in gateway.calls("GET"))


def test_a_gateway_that_is_not_there_is_said_to_be_so() -> None:
    answer = browser("http://127.0.0.1:1").get("/sound/job_1")
    assert (answer.status_code, answer.text) == (502, "The gateway does not answer.")
