"""The page of what was used: requests, how long they took, what failed and what was made; an admin sees all of it."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any

import streamlit as st

from ui.client import Client
from ui.models import TASKS
from ui.session import client, told

SPANS = {"The last 24 hours": (1, "1h"), "The last 7 days": (7, "1d"), "The last 30 days": (30, "1d")}
GROUPS = {"modality": "Modality", "model": "Model", "owner": "Caller"}
NOBODY = "without a key"
MOST = 1000  # rows of the log that the times are of


def show() -> None:
    """Show the page."""
    st.title("Usage")
    with st.container(horizontal=True):
        span = st.selectbox("Time", list(SPANS))
        group = st.selectbox("Told apart by", list(GROUPS), format_func=GROUPS.__getitem__)
    days, width = SPANS[span]
    since = (datetime.now(UTC) - timedelta(days=days)).isoformat()
    with told():
        asked = client()
        rows = [row for row in asked.usage(since, MOST) if row["modality"]]
        if not rows:
            st.info("Nothing was asked for in this time.", icon=":material/hourglass_empty:")
            return
        numbers(rows)
        over_time(asked, since, width, group)
        times(rows, group)
        units(asked, since, group)


def numbers(rows: Sequence[Mapping[str, Any]]) -> None:
    """Show the most important numbers."""
    failures = sum(not row["successful"] for row in rows)
    with st.container(horizontal=True):
        st.metric("Requests" if len(rows) < MOST else "Requests, the newest", len(rows), border=True)
        st.metric("Failed", f"{failures} ({failures / len(rows):.0%})", border=True)
        st.metric("First byte, median", seconds(median_of(rows, "first_byte_seconds")), border=True)
        st.metric("Model's work, median", seconds(median_of(rows, "run_seconds")), border=True)


def over_time(asked: Client, since: str, width: str, group: str) -> None:
    """Draw the requests by the hour or the day."""
    st.subheader("Requests over time")
    data = [
        {
            "Time (UTC)": bucket["start"][5:16].replace("T", " "),
            "Requests": total["requests"],
            GROUPS[group]: name_of(total, group),
        }
        for bucket in asked.totals(since, width, f"{group},modality")
        for total in bucket["results"]
        if total["modality"]
    ]
    st.bar_chart(
        data, x="Time (UTC)", y="Requests", color=GROUPS[group], alt="Requests over time, a bar for each hour or day"
    )


def times(rows: Sequence[Mapping[str, Any]], group: str) -> None:
    """Show how long it took, and what failed."""
    st.subheader("How long it took")
    of: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        of[name_of(row, group)].append(row)
    table = [
        {
            GROUPS[group]: name,
            "Requests": len(found),
            "Failed": sum(not row["successful"] for row in found),
            "First byte, median": seconds(median_of(found, "first_byte_seconds")),
            "Whole answer, median": seconds(median_of(found, "response_seconds")),
            "Whole answer, p95": seconds(p95_of(found, "response_seconds")),
            "Model's work, median": seconds(median_of(found, "run_seconds")),
            "Model's work, p95": seconds(p95_of(found, "run_seconds")),
        }
        for name, found in sorted(of.items())
    ]
    st.dataframe(table, hide_index=True)
    st.caption("A job is answered at once, and its model works afterwards. p95: 95 of 100 took no longer.")


def units(asked: Client, since: str, group: str) -> None:
    """Show what was made, in the unit of each modality."""
    st.subheader("What was made")
    groups = dict.fromkeys([group, "modality"])
    totals = [total for bucket in asked.totals(since, "all", ",".join(groups)) for total in bucket["results"]]
    lines = [
        {
            GROUPS[group]: name_of(total, group),
            "Unit": unit.replace("_", " "),
            "Amount": amount,
            "Queue, seconds": total["queue_seconds"],
            "Model, seconds": total["run_seconds"],
        }
        for total in totals
        for unit, amount in total["units"].items()
    ]
    st.dataframe(lines, hide_index=True, column_config={"Amount": st.column_config.NumberColumn(format="localized")})


def name_of(row: Mapping[str, Any], group: str) -> str:
    """What a row is counted under."""
    name = row[group]
    return TASKS[name] if group == "modality" else name or (NOBODY if group == "owner" else "none")


def values(rows: Sequence[Mapping[str, Any]], name: str) -> Iterator[float]:
    """Yield what is known under a name."""
    return (row[name] for row in rows if row[name] is not None)


def median_of(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The one in the middle; None: nothing is known."""
    found = list(values(rows, name))
    return median(found) if found else None


def p95_of(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """What 95 of 100 do not go beyond; None: nothing is known."""
    found = sorted(values(rows, name))
    return found[-(-len(found) * 95 // 100) - 1] if found else None


def seconds(value: float | None) -> str:
    """Write a time for people."""
    if value is None:
        return "unknown"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
