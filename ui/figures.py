"""Numbers of the usage log, put together for people; knows no page."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Row = Mapping[str, Any]
UNITS = {
    "text": "tokens",
    "audio": "audio_seconds",
    "image": "pixel_steps",
    "video": "frames",
    "mesh": "meshes",
}  # what is paid for, by modality


def by(rows: Iterable[Row], name_of: Callable[[Row], str]) -> list[tuple[str, list[Row]]]:
    """Put rows of a name together, in the order of the names."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[name_of(row)].append(row)
    return sorted(found.items())


def cost_of(totals: Iterable[Row], prices: Mapping[str, float]) -> float:
    """What was made costs, by the prices of the models; of one that is served no more, nothing."""
    return sum(
        (total["units"].get(UNITS[total["modality"]], 0) * prices.get(total["model"], 0) for total in totals), 0.0
    )


def seconds(value: float | None) -> str:
    """Write a time for people."""
    if value is None:
        return "unknown"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def number(value: float) -> str:
    """Write an amount for people."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.4g}"
