"""What a unit costs, by model or by task, from a TOML file."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.errors import Misconfigured
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
    try:
        return Prices.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise Misconfigured(f"ATELIER_PRICES_FILE: {file}: {place}: {first['msg']}") from error
    except (OSError, ValueError) as error:
        raise Misconfigured(f"ATELIER_PRICES_FILE: {file} cannot be read: {error}") from error
