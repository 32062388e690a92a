"""What a unit costs, by model or by task, from a TOML file."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from gateway.errors import told_of
from services.registry import Task

Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Prices(BaseModel):
    """Money for a unit (token, pixel step, second, frame, mesh); what is not named is free."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: Mapping[str, Price] = {}
    tasks: Mapping[Task, Price] = {}

    def of(self, task: Task, model: str) -> float:
        """The price of a unit of this model."""
        return self.models.get(model, self.tasks.get(task, 0.0))


def read_prices(file: Path | None) -> Prices:
    """Read the file, if there is one.

    Raises:
        Misconfigured: it is no TOML, or says something else than prices.
    """
    if file is None:
        return Prices()
    with told_of("ATELIER_PRICES_FILE", file):
        return Prices.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
