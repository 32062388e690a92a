"""The page of what was used and what goes on; an admin sees all of it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from html import escape
from typing import Any

import streamlit as st

from ui import figures, models
from ui.client import Client
from ui.errors import KeyProblem
from ui.figures import Row, by, cost_of, number, seconds
from ui.models import TASKS
from ui.session import client, told

SPANS = {"Today and yesterday": (2, "1h"), "The last 7 days": (7, "1d"), "The last 30 days": (30, "1d")}  # UTC's days
GROUPS = {"modality": "Modality", "model": "Model", "owner": "Caller"}
SOUND = "Seconds of sound"
COUNTED: Mapping[str, Callable[[Row], float]] = {
    "Requests": lambda total: total["requests"],
    "Failures": lambda total: total["failures"],
    "Tokens": lambda total: total["units"].get("tokens", 0),
    SOUND: lambda total: total["units"].get("audio_seconds", 0),
    "Pixel steps": lambda total: total["units"].get("pixel_steps", 0),
    "Frames": lambda total: total["units"].get("frames", 0),
    "Meshes": lambda total: total["units"].get("meshes", 0),
}
TIMES = {"first_byte_seconds": "First byte", "response_seconds": "Whole answer", "run_seconds": "Model time"}
RANKS = {"p50": "median", "p95": "p95"}
TIMED = {f"{title}, {name} (s)": (measure, rank) for measure, title in TIMES.items() for rank, name in RANKS.items()}
AXES: Mapping[str, Mapping[str, Any]] = {  # of time, by the width of a bucket
    "1h": {"unit": "utcyearmonthdatehours", "format": "%d %b %H:%M", "ticks": {"interval": "hours", "step": 6}},
    "1d": {"unit": "utcyearmonthdate", "format": "%d %b", "ticks": {"interval": "date", "step": 1}},
}
CHART_HEIGHT, LEGEND_LINE = 320, 24  # pixels
LEGEND_WIDTH, LETTER_WIDTH, SYMBOL_WIDTH, LEGEND_GAP = 270, 7, 16, 6  # pixels; the first: on a narrow screen
NOBODY = "without a key"
LOOK_SECONDS = 2.0  # between two looks at what goes on


def show() -> None:
    """Show the page."""
    st.title("Usage")
    with told():
        asked = client()
        known = asked.models()  # first: a key that is none any more is said to be so once
        now()
        what_was_asked_for(asked, known)


def what_was_asked_for(asked: Client, known: Sequence[Row]) -> None:
    """Show what was asked for in a time, and how far the budgets are used."""
    st.subheader("What was asked for")
    with st.container(horizontal=True):
        span = st.selectbox("Time", list(SPANS), help="Whole days in UTC.")
        group = st.selectbox("Told apart by", list(GROUPS), format_func=GROUPS.__getitem__)
        drawn = st.selectbox("Drawn", [*COUNTED, *TIMED])
    days, width = SPANS[span]
    since = (datetime.now(UTC).date() - timedelta(days=days - 1)).isoformat()
    [whole] = asked.totals(since, "all", percentiles=TIMES)
    if whole["results"]:
        [bucket] = asked.totals(since, "all", dict.fromkeys([group, "model", "modality"]))
        prices = {model["id"]: model["price"] for model in known}
        numbers(whole["results"][0], cost_of(bucket["results"], prices))
        measures = [TIMED[drawn][0]] if drawn in TIMED else []
        over_time(drawn, group, width, asked.totals(since, width, [group], measures))
        [told_apart] = asked.totals(since, "all", [group], TIMES)
        times(told_apart["results"], group)
        units(bucket["results"], group, prices)
    else:
        st.info("Nothing was asked for in this time.", icon=":material/hourglass_empty:")
    budgets(asked)


@st.fragment(run_every=LOOK_SECONDS)
def now() -> None:
    """Show what the workers do at this instant."""
    st.subheader("Now")
    with told():
        lines = [
            {
                "Model": model["id"],
                "Modality": TASKS[model["task"]],
                "State": models.STATES[model["state"]],
                "Waiting": model["num_waiting"],
                "In progress": model["num_active"],
                "Batch": model["batch_size"],
            }
            for model in client().models()
            if model["state"] != "external"
        ]
        st.dataframe(lines, hide_index=True)
        st.caption("Requests in the queue, those in progress, and how many of these shared the model's latest step.")


def numbers(total: Row, cost: float) -> None:
    """Show the most important numbers."""
    requests, failures = total["requests"], total["failures"]
    with st.container(horizontal=True):
        st.metric("Requests", f"{requests:,}", border=True)
        st.metric("Failed", f"{failures:,} ({failures / requests:.0%})", border=True)
        st.metric("First byte, median", seconds(ranked(total, "first_byte_seconds", "p50")), border=True)
        st.metric("Whole answer, p95", seconds(ranked(total, "response_seconds", "p95")), border=True)
        st.metric("Model time, median", seconds(ranked(total, "run_seconds", "p50")), border=True)
        if cost:
            st.metric("Cost", number(cost), border=True, help="At today's prices, in the money that they are in.")


def ranked(total: Row, measure: str, rank: str) -> float | None:
    """A percentile of a time; None: no row is kept that knows it."""
    found: Mapping[str, float] | None = total["percentiles"][measure]
    return found[rank] if found else None


def over_time(drawn: str, group: str, width: str, buckets: Sequence[Row]) -> None:
    """Draw values by their hour or day and their name, on an axis of the whole time."""
    st.subheader(f"{drawn.removesuffix(' (s)')} over time")
    value = COUNTED.get(drawn) or partial(ranked, measure=TIMED[drawn][0], rank=TIMED[drawn][1])
    names = sorted({name_of(total, group) for bucket in buckets for total in bucket["results"]})
    points = [
        {"Time": instant(bucket["start"]), GROUPS[group]: name, drawn: found.get(name)}
        for bucket in buckets
        for found in ({name_of(total, group): value(total) for total in bucket["results"]},)
        for name in names
    ]
    ends = [instant(bucket[end]) for bucket, end in ((buckets[0], "start"), (buckets[-1], "end"))]
    said = f"{drawn} over time in UTC, for each {'hour' if width == '1h' else 'day'}"
    st.vega_lite_chart(points, chart(drawn, GROUPS[group], width, ends, names), alt=said)


def chart(drawn: str, group: str, width: str, ends: Sequence[datetime], names: Sequence[str]) -> dict[str, Any]:
    """Say how it is drawn: what adds up in bars upon each other, times in lines that end where nothing is known."""
    axis = AXES[width]
    columns = columns_of(names)
    time = {"field": "Time", "type": "temporal", "timeUnit": axis["unit"], "title": "Time (UTC)"}
    shown = {
        "scale": {"type": "utc", "domain": [in_words(end) for end in ends]},
        "axis": {"format": axis["format"], "tickCount": axis["ticks"], "labelOverlap": "greedy"},
    }
    whole = {} if drawn in (*TIMED, SOUND) else {"tickMinStep": 1}  # there are no halves of these
    legend = {
        "orient": "bottom",
        "columns": columns,
        "columnPadding": LEGEND_GAP,
        "labelLimit": 300,
        "symbolType": "square",
    }
    return {
        "height": CHART_HEIGHT + LEGEND_LINE * -(-len(names) // columns),
        "mark": {"type": "bar"} if drawn in COUNTED else {"type": "line", "point": True},
        "encoding": {
            "x": {**time, **shown},
            "y": {"field": drawn, "type": "quantitative", "title": drawn, "axis": whole},
            "color": {"field": group, "type": "nominal", "legend": legend},
            "tooltip": [
                {**time, "format": "%d %b %Y %H:%M"},
                {"field": group, "type": "nominal"},
                {"field": drawn, "type": "quantitative"},
            ],
        },
    }


def columns_of(names: Sequence[str]) -> int:
    """In how many columns, each as wide as its widest name, a legend fits on a narrow screen."""
    widths = [SYMBOL_WIDTH + LETTER_WIDTH * len(name) + LEGEND_GAP for name in names]
    ways = range(len(names), 1, -1)
    return next((n for n in ways if sum(max(widths[i::n]) for i in range(n)) <= LEGEND_WIDTH), 1)


def instant(text: str) -> datetime:
    """When a bucket begins or ends; a day begins at midnight in UTC."""
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def in_words(end: datetime) -> dict[str, Any]:
    """Write an instant as Vega-Lite takes it."""
    return {"year": end.year, "month": end.month, "date": end.day, "hours": end.hour, "utc": True}


def times(totals: Sequence[Row], group: str) -> None:
    """Show how long it took, and what failed."""
    st.subheader("How long it took")
    table = [
        {
            GROUPS[group]: name_of(total, group),
            "Requests": total["requests"],
            "Failed": total["failures"],
            **{
                f"{title}, {name}": seconds(ranked(total, measure, rank))
                for measure, title in TIMES.items()
                for rank, name in RANKS.items()
            },
        }
        for total in totals
    ]
    st.dataframe(table, hide_index=True)
    st.caption("A job is answered at once, and its model works afterwards. p95: 95 of 100 took no longer.")


def units(made: Sequence[Row], group: str, prices: Mapping[str, float]) -> None:
    """Show what was made of each modality, and beside the unit that is paid for, what it costs and how long it took."""
    st.subheader("What was made")
    lines = [
        {
            GROUPS[group]: name,
            GROUPS["modality"]: TASKS[modality],
            "Unit": unit.replace("_", " "),
            "Amount": sum(total["units"].get(unit, 0) for total in found),
            **(took(found, prices) if unit == figures.UNITS[modality] else {}),
        }
        for name, of_name in by(made, lambda total: name_of(total, group))
        for modality, found in by(of_name, lambda total: total["modality"])
        for unit in dict.fromkeys(unit for total in found for unit in total["units"])
    ]
    localized = st.column_config.NumberColumn(format="localized")
    st.dataframe(lines, hide_index=True, column_config={"Amount": localized}, placeholder="")
    st.caption("At today's prices; a unit that the operator has given no price costs nothing.")


def took(found: Sequence[Row], prices: Mapping[str, float]) -> dict[str, float]:
    """What it costs, and how long it waited and was worked on."""
    return {
        "Cost": cost_of(found, prices),
        "Queue, seconds": round(sum(total["queue_seconds"] for total in found), 1),
        "Model, seconds": round(sum(total["run_seconds"] for total in found), 1),
    }


def budgets(asked: Client) -> None:
    """Show how far budgets are used: the key's own, and to an admin everybody's."""
    st.subheader("Budgets")
    found, nobody = [("yours", each) for each in asked.budgets()], "Your key has no budget"
    with suppress(KeyProblem):  # who is no admin sees their own
        found += asked.budgets_of_all()
        nobody = "No key has a budget"
    if not found:
        st.caption(f"{nobody}: as much may be used as there is.")
    for whose, each in found:
        unit = each["unit"].replace("_", " ")
        said = f"{whose}, a {each['period']}: {number(each['used'])} of {number(each['limit'])} {unit}"
        st.html(bar(said, each["used"] / each["limit"]))


def bar(said: str, share: float) -> str:
    """Write a bar that has its words for a name, as they are: Streamlit's own reads Markdown and is called progress."""
    style = "width: 100%; accent-color: var(--st-primary-color)"
    return f'<label>{escape(said)}<progress value="{min(1.0, share)}" style="{style}"></progress></label>'


def name_of(row: Row, group: str) -> str:
    """What a row is counted under."""
    name = row[group]
    return TASKS[name] if group == "modality" else name or (NOBODY if group == "owner" else "none")
