"""The page of usage."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow  # type: ignore[import-untyped] # it ships no types
import pytest
from streamlit.testing.v1 import AppTest

from tests.ui.conftest import listing, model
from tests.ui.gateway import Gateway, refusal

Visit = Callable[..., AppTest]
Totals = list[dict[str, Any]]

MEASURES = ("first_byte_seconds", "response_seconds", "run_seconds")
DRAWN, SPOKEN = (
    {"modality": "image", "model": "tiny-sd", "owner": "", "units": {"pixel_steps": 640}},
    {"modality": "audio", "model": "bark-small", "owner": "team_a_b", "units": {"audio_seconds": 2.5}},
)


def total(
    fields: Mapping[str, Any], requests: int, failures: int = 0, times: tuple[float, ...] = (0.02, 0.5, 10.5)
) -> dict[str, Any]:
    """What some requests come to, and their times: the first byte, the whole answer, the model's work."""
    ranks = {name: {"p50": time, "p95": 2 * time} for name, time in zip(MEASURES, times, strict=True)}
    numbers = {"requests": requests, "failures": failures, "queue_seconds": 1.0, "run_seconds": 290.0}
    return {**fields, **numbers, "percentiles": ranks}


class Summary:
    """Answers as the gateway does: what there is of each hour or day, or of all; and of the times what is asked for."""

    def __init__(self) -> None:
        self.apart: Totals = [total(DRAWN, 1500, 60), total(SPOKEN, 500, 40, (0.1, 5, 3))]
        self.together: Totals = [total(DRAWN, 2000, 100, (0.03, 0.7, 9))]
        self.over_time = [
            ("2026-01-31T08:00:00Z", "2026-01-31T09:00:00Z", [total(DRAWN, 1500, 60, (0.02, 0.5, 8))]),
            ("2026-01-31T09:00:00Z", "2026-01-31T10:00:00Z", []),
            ("2026-01-31T10:00:00Z", "2026-01-31T11:00:00Z", [total(SPOKEN, 500, 40, (0.1, 5, 3))]),
        ]
        self.asked: list[Mapping[str, str]] = []

    def __call__(self, query: Mapping[str, str]) -> dict[str, Any]:
        self.asked.append(dict(query))
        whole = ("2026-01-30", "2026-02-01", self.apart if "group_by" in query else self.together)
        buckets = [whole] if query["bucket_width"] == "all" else self.over_time
        measures = [name for name in query.get("percentiles", "").split(",") if name]
        return {
            "data": [
                {
                    "start": start,
                    "end": end,
                    "results": [
                        {**each, "percentiles": {name: each["percentiles"][name] for name in measures}}
                        for each in results
                    ],
                }
                for start, end, results in buckets
            ]
        }


@pytest.fixture
def summary() -> Summary:
    return Summary()


@pytest.fixture
def used(gateway: Gateway, summary: Summary) -> Gateway:
    busy = {"num_waiting": 3, "num_active": 2, "batch_size": 2, "price": 0.5}
    gateway.answers["GET", "/v1/models"] = {"data": [model("image", "tiny-sd", **busy)]}
    gateway.answers["GET", "/v1/usage/summary"] = summary
    gateway.answers["GET", "/v1/budgets"] = {"data": []}
    gateway.answers["GET", "/v1/keys"] = refusal(403, "the key lacks the scope admin")
    return gateway


def chart(page: AppTest) -> tuple[dict[str, Any], Any]:
    """How it is drawn, and what."""
    proto = page.get("vega_lite_chart")[0].proto
    [data] = [each.data.data for each in proto.datasets] or [proto.data.data]
    return json.loads(proto.spec), pyarrow.ipc.open_stream(data).read_pandas()


def test_requests_failures_times_units_and_cost_are_shown(used: Gateway, visit: Visit) -> None:
    page = visit("usage")

    assert {each.label: each.value for each in page.metric} == {
        "Requests": "2,000",
        "Failed": "100 (5%)",
        "First byte, median": "30 ms",
        "Whole answer, p95": "1.4 s",
        "Model time, median": "9.0 s",
        "Cost": "320",
    }
    units = page.dataframe[2].value.iloc[0]
    assert (units["Unit"], units["Amount"], units["Cost"]) == ("pixel steps", 640, 320)


def test_times_and_failures_are_the_gateways_of_all_requests(used: Gateway, visit: Visit, summary: Summary) -> None:
    table = visit("usage").dataframe[1].value

    assert table.to_numpy().tolist() == [
        ["Image", 1500, 60, "20 ms", "40 ms", "500 ms", "1.0 s", "10.5 s", "21.0 s"],
        ["Speech", 500, 40, "100 ms", "200 ms", "5.0 s", "10.0 s", "3.0 s", "6.0 s"],
    ]
    assert "/v1/usage" not in used.calls("GET")  # no page of the log, of which there may be more
    assert {query["modality"] for query in summary.asked} == {"image,audio,video,mesh,text"}


def test_a_time_that_nobody_knows_is_said_to_be_so(used: Gateway, visit: Visit, summary: Summary) -> None:
    summary.apart[0]["percentiles"]["run_seconds"] = summary.together[0]["percentiles"]["run_seconds"] = None
    page = visit("usage")

    assert page.dataframe[1].value.iloc[0]["Model time, p95"] == "unknown"
    assert [each.value for each in page.metric if each.label == "Model time, median"] == ["unknown"]


def test_what_goes_on_now_is_shown(used: Gateway, visit: Visit) -> None:
    line = visit("usage").dataframe[0].value.iloc[0]

    assert (line["Model"], line["Waiting"], line["In progress"], line["Batch"]) == ("tiny-sd", 3, 2, 2)


@pytest.mark.parametrize(
    ("drawn", "values"),
    [
        ("Requests", [1500, 500]),
        ("Failures", [60, 40]),
        ("Pixel steps", [640, 0]),
        ("Seconds of sound", [0, 2.5]),
        ("Tokens", [0, 0]),
        ("First byte, median (s)", [0.02, 0.1]),
        ("Whole answer, p95 (s)", [1, 10]),
        ("Model time, median (s)", [8, 3]),
    ],
)
def test_what_is_drawn_over_time_is_chosen(used: Gateway, visit: Visit, drawn: str, values: list[float]) -> None:
    page = visit("usage")
    page.selectbox[2].set_value(drawn).run()

    assert [heading.value for heading in page.subheader if "over time" in heading.value] == [
        f"{drawn.removesuffix(' (s)')} over time"
    ]
    spec, data = chart(page)
    assert spec["encoding"]["y"]["field"] == drawn
    has_halves = drawn == "Seconds of sound" or drawn.endswith("(s)")
    assert spec["encoding"]["y"]["axis"].get("tickMinStep") == (None if has_halves else 1)
    found = data.dropna(subset=drawn)
    assert found[["Modality", drawn]].to_numpy().tolist() == [["Image", values[0]], ["Speech", values[1]]]
    assert [at.isoformat() for at in found["Time"]] == ["2026-01-31T08:00:00+00:00", "2026-01-31T10:00:00+00:00"]


def test_time_is_drawn_as_it_passes_in_utc(used: Gateway, visit: Visit) -> None:
    """Also where nothing happened: between two hours, and before the first."""
    spec, data = chart(visit("usage"))
    axis = spec["encoding"]["x"]

    assert (axis["type"], axis["scale"]["type"], axis["timeUnit"]) == ("temporal", "utc", "utcyearmonthdatehours")
    assert [(end["date"], end["hours"], end["utc"]) for end in axis["scale"]["domain"]] == [
        (31, 8, True),
        (31, 11, True),
    ]
    assert axis["title"] == "Time (UTC)"
    assert len(data) == 6  # a line ends where an hour has nothing


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (["image", "audio"], 2),
        (["3D", "Image", "Speech", "Text", "Video"], 5),
        (["bark-small", "chat", "films", "letters", "solids"], 4),
        (["video", "a" * 60], 1),
    ],
)
def test_a_legend_is_as_wide_as_a_narrow_screen(
    used: Gateway, visit: Visit, summary: Summary, names: list[str], columns: int
) -> None:
    summary.over_time = [(*summary.over_time[0][:2], [total({**DRAWN, "model": name}, 1) for name in names])]
    page = visit("usage")
    page.selectbox[1].set_value("model").run()
    legend = chart(page)[0]["encoding"]["color"]["legend"]

    assert (legend["orient"], legend["columns"]) == ("bottom", columns)


def test_requests_are_told_apart_as_is_wanted(used: Gateway, visit: Visit, summary: Summary) -> None:
    page = visit("usage")
    summary.asked.clear()
    page.selectbox[1].set_value("owner").run()

    callers = [each.value["Caller"].tolist() for each in page.dataframe[1:]]
    assert callers == [["without a key", "team_a_b"], ["team_a_b", "without a key"]]
    assert {query.get("group_by") for query in summary.asked if "percentiles" in query} == {None, "owner"}


def test_a_unit_is_told_apart_by_what_was_made(used: Gateway, visit: Visit, summary: Summary) -> None:
    film = {"modality": "video", "model": "wan", "owner": "", "units": {"pixel_steps": 90, "frames": 9}}
    summary.apart[:] = [total(DRAWN, 1), total(film, 1)]
    page = visit("usage")
    page.selectbox[1].set_value("owner").run()

    table = page.dataframe[2].value
    assert table[["Modality", "Unit", "Amount"]].to_numpy().tolist() == [
        ["Image", "pixel steps", 640],
        ["Video", "pixel steps", 90],
        ["Video", "frames", 9],
    ]
    assert table["Model, seconds"].tolist()[::2] == [290, 290]


def bars(page: AppTest) -> list[tuple[str, float]]:
    """The words and the share of each bar, as a browser reads them."""
    found = (re.search(r"<label>(.*)<progress value=\"([\d.]+)\"", each.proto.body) for each in page.get("html"))
    return [(each[1], float(each[2])) for each in found if each]


def key_of(owner: str, budgets: dict[str, dict[str, float]]) -> dict[str, object]:
    """A key as the gateway lists it."""
    return {"id": "k1", "owner": owner, "budgets": budgets, "revoked_at": None}


def test_budgets_are_shown_ones_own_and_to_an_admin_all(used: Gateway, visit: Visit) -> None:
    used.answers["GET", "/v1/budgets"] = {"data": [{"period": "day", "unit": "tokens", "limit": 1000, "used": 250}]}
    assert bars(visit("usage")) == [("yours, a day: 250 of 1,000 tokens", 0.25)]

    key = key_of("ada", {"month": {"pixel_steps": 10.0}})
    used.answers["GET", "/v1/keys"] = listing(key, {**key, "id": "k2", "budgets": {}})
    used.answers["GET", "/v1/keys/k1"] = {**key, "used": {"month": {"pixel_steps": 12.5}}}
    assert bars(visit("usage"))[1:] == [("ada (k1), a month: 12.5 of 10 pixel steps", 1)]


def test_budgets_of_two_keys_of_one_owner_are_told_apart(used: Gateway, visit: Visit) -> None:
    key = key_of("ada", {"day": {"tokens": 10.0}})
    used.answers["GET", "/v1/keys"] = listing(key, {**key, "id": "k2"})
    for number, tokens in ((1, 5.0), (2, 6.0)):
        used.answers["GET", f"/v1/keys/k{number}"] = {**key, "used": {"day": {"tokens": tokens}}}

    assert bars(visit("usage")) == [("ada (k1), a day: 5 of 10 tokens", 0.5), ("ada (k2), a day: 6 of 10 tokens", 0.6)]


def test_who_may_see_no_other_key_is_told_of_their_own_alone(used: Gateway, visit: Visit) -> None:
    for answer, said in ((refusal(403, "no"), "Your key has no budget"), (listing(), "No key has a budget")):
        used.answers["GET", "/v1/keys"] = answer
        assert f"{said}: as much may be used as there is." in [caption.value for caption in visit("usage").caption]


def test_no_budget_is_missed_among_however_many_keys(used: Gateway, visit: Visit) -> None:
    key = key_of("ada", {"day": {"tokens": 10.0}})
    others = [{**key, "id": f"k{number}", "budgets": {}} for number in range(2, 2002)]
    used.answers["GET", "/v1/keys"] = listing(*others, key)
    used.answers["GET", "/v1/keys/k1"] = {**key, "used": {"day": {"tokens": 5.0}}}

    assert bars(visit("usage")) == [("ada (k1), a day: 5 of 10 tokens", 0.5)]
    assert [path for path in used.calls("GET") if "keys" in path] == ["/v1/keys"] * 3 + ["/v1/keys/k1"]


@pytest.mark.parametrize(
    ("owner", "said"), [("team_a_b", "team_a_b"), ("b*ob*", "b*ob*"), ("<b>b</b>", "&lt;b&gt;b&lt;/b&gt;")]
)
def test_callers_are_called_what_they_are_called(used: Gateway, visit: Visit, owner: str, said: str) -> None:
    key = key_of(owner, {"day": {"audio_seconds": 10.0}})
    used.answers["GET", "/v1/keys"] = listing(key)
    used.answers["GET", "/v1/keys/k1"] = {**key, "used": {"day": {"audio_seconds": 5.0}}}

    assert bars(visit("usage")) == [(f"{said} (k1), a day: 5 of 10 audio seconds", 0.5)]


def test_a_key_that_is_none_any_more_is_said_to_be_so_once(used: Gateway, visit: Visit) -> None:
    for path in ("models", "usage/summary", "budgets", "keys"):
        used.answers["GET", f"/v1/{path}"] = refusal(401, "the key has been revoked")

    assert [error.value for error in visit("usage").error] == ["The key has been revoked. Give a key that is valid."]


def test_nothing_used_is_said_to_be_so(used: Gateway, visit: Visit, summary: Summary) -> None:
    summary.together.clear()

    assert visit("usage").info[0].value == "Nothing was asked for in this time."
