"""The page of usage."""

from collections.abc import Callable

import pyarrow  # type: ignore[import-untyped] # it ships no types
import pytest
from streamlit.testing.v1 import AppTest

from tests.ui.conftest import model
from tests.ui.gateway import Gateway, refusal

Visit = Callable[..., AppTest]


def row(run_seconds: float, **fields: object) -> dict[str, object]:
    return {
        "modality": "image",
        "model": "tiny-sd",
        "owner": "",
        "started_at": "2026-01-31T12:34:56Z",
        "successful": True,
        "first_byte_seconds": 0.02,
        "response_seconds": 0.5,
        "run_seconds": run_seconds,
        **fields,
    }


@pytest.fixture
def used(gateway: Gateway) -> Gateway:
    later = {"started_at": "2026-01-31T13:00:00Z", "successful": False}
    rows = [*(row(float(n)) for n in range(1, 20)), row(100.0, **later)]
    total = {"modality": "image", "model": "tiny-sd", "owner": "", "requests": 2000, "failures": 100}
    total["units"] = {"pixel_steps": 640}
    times = {"queue_seconds": 1.0, "run_seconds": 290.0}
    busy = {"num_waiting": 3, "num_active": 2, "batch_size": 2, "price": 0.5}
    gateway.answers["GET", "/v1/models"] = {"data": [model("image", "tiny-sd", **busy)]}
    gateway.answers["GET", "/v1/usage"] = {"data": rows}
    gateway.answers["GET", "/v1/usage/summary"] = {
        "data": [{"start": "2026-01-31T12:00:00Z", "results": [{**total, **times}]}]
    }
    gateway.answers["GET", "/v1/budgets"] = {"data": []}
    gateway.answers["GET", "/v1/keys"] = refusal(403, "the key lacks the scope admin")
    return gateway


def test_requests_failures_times_units_and_cost_are_shown(used: Gateway, visit: Visit) -> None:
    page = visit("usage")

    assert {each.label: each.value for each in page.metric} == {
        "Requests": "2,000",
        "Failed": "100 (5%)",
        "First byte, median": "20 ms",
        "Whole answer, p95": "500 ms",
        "Model time, median": "10.5 s",
        "Cost": "320",
    }
    _, times, units = (each.value.iloc[0] for each in page.dataframe)
    assert (times["Modality"], times["Requests"], times["Model time, p95"]) == ("Image", 20, "19.0 s")
    assert (times["First byte, median"], times["First byte, p95"]) == ("20 ms", "20 ms")
    assert (units["Unit"], units["Amount"], units["Cost"]) == ("pixel steps", 640, 320)


def test_what_goes_on_now_is_shown(used: Gateway, visit: Visit) -> None:
    line = visit("usage").dataframe[0].value.iloc[0]

    assert (line["Model"], line["Waiting"], line["In progress"], line["Batch"]) == ("tiny-sd", 3, 2, 2)


@pytest.mark.parametrize(
    ("drawn", "values"),
    [("Requests", [2000]), ("Pixel steps", [640]), ("Tokens", [0]), ("Model time, median (s)", [10, 100])],
)
def test_what_is_drawn_over_time_is_chosen(used: Gateway, visit: Visit, drawn: str, values: list[float]) -> None:
    page = visit("usage")
    page.selectbox[2].set_value(drawn).run()

    assert [heading.value for heading in page.subheader if "over time" in heading.value] == [
        f"{drawn.removesuffix(' (s)')} over time"
    ]
    chart = page.get("vega_lite_chart")[0].proto
    [data] = [each.data.data for each in chart.datasets] or [chart.data.data]
    assert pyarrow.ipc.open_stream(data).read_pandas()[drawn].tolist() == values


def test_requests_are_told_apart_as_is_wanted(used: Gateway, visit: Visit) -> None:
    page = visit("usage")
    page.selectbox[1].set_value("owner").run()

    assert [each.value.iloc[0]["Caller"] for each in page.dataframe[1:]] == ["without a key"] * 2


def test_a_unit_is_told_apart_by_what_was_made(used: Gateway, visit: Visit) -> None:
    [bucket] = used.answers["GET", "/v1/usage/summary"]["data"]
    film = {"modality": "video", "model": "wan", "units": {"pixel_steps": 90, "frames": 9}}
    bucket["results"].append({**bucket["results"][0], **film})
    page = visit("usage")
    page.selectbox[1].set_value("owner").run()

    table = page.dataframe[2].value
    assert table[["Modality", "Unit", "Amount"]].to_numpy().tolist() == [
        ["Image", "pixel steps", 640],
        ["Video", "pixel steps", 90],
        ["Video", "frames", 9],
    ]
    assert table["Model, seconds"].tolist()[::2] == [290, 290]


def test_budgets_are_shown_ones_own_and_to_an_admin_all(used: Gateway, visit: Visit) -> None:
    used.answers["GET", "/v1/budgets"] = {"data": [{"period": "day", "unit": "tokens", "limit": 1000, "used": 250}]}
    assert [bar.proto.text for bar in visit("usage").get("progress")] == ["yours, a day: 250 of 1,000 tokens"]

    key = {"id": "k1", "owner": "ada", "budgets": {"month": {"pixel_steps": 10.0}}, "revoked_at": None}
    used.answers["GET", "/v1/keys"] = {"data": [key, {**key, "id": "k2", "budgets": {}}]}
    used.answers["GET", "/v1/keys/k1"] = {**key, "used": {"month": {"pixel_steps": 12.5}}}
    bars = [bar.proto for bar in visit("usage").get("progress")]
    assert (bars[1].text, bars[1].value) == ("ada, a month: 12.5 of 10 pixel steps", 100)


def test_nothing_used_is_said_to_be_so(used: Gateway, visit: Visit) -> None:
    used.answers["GET", "/v1/usage"] = {"data": []}

    assert visit("usage").info[0].value == "Nothing was asked for in this time."
