"""What `deploy/grafana/atelier.json` asks Prometheus for."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).parents[1] / "deploy" / "grafana" / "atelier.json"
SERIES = re.compile(r"\b(?:atelier|process|bentoml)_\w+")


def panels() -> Iterator[dict[str, Any]]:
    """Yield the panels that show something."""
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        if panel["type"] != "row":
            yield panel


def queries() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def series() -> set[str]:
    return {name for query in queries() for name in SERIES.findall(query)}
