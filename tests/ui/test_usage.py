"""The page of usage."""

from collections.abc import Callable

import pytest
from streamlit.testing.v1 import AppTest

from tests.ui.gateway import Gateway

Visit = Callable[..., AppTest]


def row(run_seconds: float, **fields: object) -> dict[str, object]:
    return {
        "modality": "image",
        "model": "tiny-sd",
        "owner": "",
        "successful": True,
        "first_byte_seconds": 0.02,
        "response_seconds": 0.5,
        "run_seconds": run_seconds,
        **fields,
    }


@pytest.fixture
def used(gateway: Gateway) -> Gateway:
    other = {"modality": "", "model": ""}  # a look at the list of models
    rows = [*(row(float(n)) for n in range(1, 20)), row(100.0, successful=False), row(0.0, **other)]
    total = {"modality": "image", "model": "tiny-sd", "owner": "", "requests": 20, "units": {"pixel_steps": 640}}
    times = {"queue_seconds": 1.0, "run_seconds": 290.0}
    gateway.answers["GET", "/v1/usage"] = {"data": rows}
    gateway.answers["GET", "/v1/usage/summary"] = {
        "data": [{"start": "2026-01-31T12:00:00Z", "results": [{**total, **times}]}]
    }
    return gateway


def test_requests_failures_times_and_units_are_shown(used: Gateway, visit: Visit) -> None:
    page = visit("usage")

    assert {each.label: each.value for each in page.metric} == {
        "Requests": "20",
        "Failed": "1 (5%)",
        "First byte, median": "20 ms",
        "Model's work, median": "10.5 s",
    }
    times, units = (each.value.iloc[0] for each in page.dataframe)
    assert (times["Modality"], times["Requests"], times["Model's work, p95"]) == ("Image", 20, "19.0 s")
    assert (units["Unit"], units["Amount"]) == ("pixel steps", 640)


def test_requests_are_told_apart_as_is_wanted(used: Gateway, visit: Visit) -> None:
    page = visit("usage")
    page.selectbox[1].set_value("owner").run()

    assert [each.value.iloc[0]["Caller"] for each in page.dataframe] == ["without a key"] * 2


def test_nothing_used_is_said_to_be_so(gateway: Gateway, visit: Visit) -> None:
    gateway.answers["GET", "/v1/usage"] = {"data": []}

    assert visit("usage").info[0].value == "Nothing was asked for in this time."
