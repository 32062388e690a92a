"""What the pages say of models, and of a gateway that says no."""

from collections.abc import Callable

import pytest
from streamlit.testing.v1 import AppTest

from tests.ui.conftest import model
from tests.ui.gateway import Gateway, refusal

Visit = Callable[..., AppTest]


def test_models_are_shown_with_licence_and_state(gateway: Gateway, visit: Visit) -> None:
    gateway.answers["GET", "/v1/models"] = {
        "data": [model("image", "tiny-sd", state="unreachable"), model("text", "chat", commercial_use=False)]
    }
    page = visit("models")

    text, image = (each.value.iloc[0] for each in page.dataframe)
    assert (text["Model"], text["Licence"], text["Commercial use"]) == ("chat", "MIT", "no")
    assert (image["Model"], image["State"]) == ("tiny-sd", "its worker does not answer")


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (refusal(401, "this key opens nothing"), "This key opens nothing. Give a key that is valid."),
        (
            refusal(503, "the database does not answer", retry_after="7"),
            "The database does not answer. Try again in 7 s.",
        ),
    ],
)
def test_a_refusal_is_a_sentence_with_what_to_do(gateway: Gateway, visit: Visit, answer: object, sentence: str) -> None:
    gateway.answers["GET", "/v1/models"] = answer
    page = visit("models")

    assert [error.value for error in page.error] == [sentence]


def test_a_gateway_that_is_not_there_is_said_to_be_so(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_URL", "http://127.0.0.1:1")
    page = visit("models")

    assert page.error[0].value.startswith("Nothing answers at http://127.0.0.1:1. `make up` starts Atelier")
