"""The page of what was used and what goes on; an admin sees all of it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import streamlit as st

from ui import figures, models
from ui.client import Client
from ui.errors import KeyProblem
from ui.figures import Row, by, cost_of, failures_of, median_of, number, p95_of, seconds
from ui.models import TASKS
from ui.session import client, told

SPANS = {"The last 24 hours": (1, "1h"), "The last 7 days": (7, "1d"), "The last 30 days": (30, "1d")}
GROUPS = {"modality": "Modality", "model": "Model", "owner": "Caller"}
COUNTED: Mapping[str, Callable[[Row], float]] = {  # of all that was asked for
    "Requests": lambda total: total["requests"],
    "Failures": lambda total: total["failures"],
    "Tokens": lambda total: total["units"].get("tokens", 0),
    "Seconds of sound": lambda total: total["units"].get("audio_seconds", 0),
    "Pixel steps": lambda total: total["units"].get("pixel_steps", 0),
    "Frames": lambda total: total["units"].get("frames", 0),
    "Meshes": lambda total: total["units"].get("meshes", 0),
}
TIMED: Mapping[str, Callable[[Sequence[Row]], float | None]] = {  # of the newest
    "First byte, median (s)": lambda rows: median_of(rows, "first_byte_seconds"),
    "First byte, p95 (s)": lambda rows: p95_of(rows, "first_byte_seconds"),
    "Whole answer, median (s)": lambda rows: median_of(rows, "response_seconds"),
    "Whole answer, p95 (s)": lambda rows: p95_of(rows, "response_seconds"),
    "Model time, median (s)": lambda rows: median_of(rows, "run_seconds"),
    "Model time, p95 (s)": lambda rows: p95_of(rows, "run_seconds"),
}
WIDTHS = {"1h": 13, "1d": 10}  # how much of a time in ISO 8601 names its hour or its day
NOBODY = "without a key"
MOST = 1000  # rows of the log that the times are of
LOOK_SECONDS = 2.0  # between two looks at what goes on


def show() -> None:
    """Show the page."""
    st.title("Usage")
    now()
    st.subheader("What was asked for")
    with st.container(horizontal=True):
        span = st.selectbox("Time", list(SPANS))
        group = st.selectbox("Told apart by", list(GROUPS), format_func=GROUPS.__getitem__)
        drawn = st.selectbox("Drawn", [*COUNTED, *TIMED])
    days, width = SPANS[span]
    since = (datetime.now(UTC) - timedelta(days=days)).isoformat()
    with told():
        asked = client()
        rows = asked.usage(since, MOST)
        if rows:
            totals = asked.totals(since, "all", ",".join(dict.fromkeys([group, "model", "modality"])))
            made = [total for bucket in totals for total in bucket["results"] if total["modality"]]
            prices = {model["id"]: model["price"] for model in asked.models()}
            numbers(made, rows, cost_of(made, prices))
            if drawn in COUNTED:
                buckets = asked.totals(since, width, ",".join(dict.fromkeys([group, "modality"])))
                over_time(drawn, group, counted(buckets, drawn, group, WIDTHS[width]))
            else:
                over_time(drawn, group, timed(rows, drawn, group, WIDTHS[width]))
            times(rows, group)
            units(made, group, prices)
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


def numbers(made: Sequence[Row], rows: Sequence[Row], cost: float) -> None:
    """Show the most important numbers."""
    requests, failures = (sum(total[name] for total in made) for name in ("requests", "failures"))
    with st.container(horizontal=True):
        st.metric("Requests", f"{requests:,}", border=True)
        st.metric("Failed", f"{failures:,} ({failures / max(1, requests):.0%})", border=True)
        st.metric("First byte, median", seconds(median_of(rows, "first_byte_seconds")), border=True)
        st.metric("Whole answer, p95", seconds(p95_of(rows, "response_seconds")), border=True)
        st.metric("Model time, median", seconds(median_of(rows, "run_seconds")), border=True)
        if cost:
            st.metric("Cost", number(cost), border=True, help="At today's prices, in the money that they are in.")


def over_time(drawn: str, group: str, points: Mapping[tuple[str, str], float | None]) -> None:
    """Draw values by their hour or day and their name."""
    st.subheader(f"{drawn.removesuffix(' (s)')} over time")
    data = [
        {"Time (UTC)": at[5:].replace("T", " ") + (":00" if "T" in at else ""), drawn: value, GROUPS[group]: name}
        for (at, name), value in sorted(points.items())
        if value is not None
    ]
    said = f"{drawn} over time, a bar for each hour or day"
    st.bar_chart(data, x="Time (UTC)", y=drawn, color=GROUPS[group], stack=drawn in COUNTED, alt=said)


def counted(buckets: Sequence[Row], drawn: str, group: str, width: int) -> dict[tuple[str, str], float | None]:
    """Add up what was asked for, by time and name."""
    points: dict[tuple[str, str], float | None] = {}
    for bucket in buckets:
        for total in bucket["results"]:
            if total["modality"]:
                at = bucket["start"][:width], name_of(total, group)
                points[at] = (points.get(at) or 0) + COUNTED[drawn](total)
    return points


def timed(rows: Sequence[Row], drawn: str, group: str, width: int) -> dict[tuple[str, str], float | None]:
    """Find how long it took, by time and name."""
    return {
        (at, name): TIMED[drawn](found)
        for name, of_name in by(rows, lambda row: name_of(row, group))
        for at, found in by(of_name, lambda row: row["started_at"][:width])
    }


def times(rows: Sequence[Row], group: str) -> None:
    """Show how long it took, and what failed."""
    st.subheader("How long it took")
    table = [
        {
            GROUPS[group]: name,
            "Requests": len(found),
            "Failed": failures_of(found),
            **{
                f"{title}, {how}": seconds(of(found, column))
                for title, column in (
                    ("First byte", "first_byte_seconds"),
                    ("Whole answer", "response_seconds"),
                    ("Model time", "run_seconds"),
                )
                for how, of in (("median", median_of), ("p95", p95_of))
            },
        }
        for name, found in by(rows, lambda row: name_of(row, group))
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
    st.dataframe(lines, hide_index=True, column_config={"Amount": localized})
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
    found = [("yours", each) for each in asked.budgets()]
    with suppress(KeyProblem):  # who is no admin sees their own
        found += asked.budgets_of_all()
    if not found:
        st.caption("No key has a budget: as much may be used as there is.")
    for owner, each in found:
        told_of = f"{owner}, a {each['period']}: {number(each['used'])} of {number(each['limit'])} {each['unit']}"
        st.progress(min(1.0, each["used"] / each["limit"]), text=told_of.replace("_", " "))


def name_of(row: Row, group: str) -> str:
    """What a row is counted under."""
    name = row[group]
    return TASKS[name] if group == "modality" else name or (NOBODY if group == "owner" else "none")
