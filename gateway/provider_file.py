"""Which outside models there are: the operator's TOML file, and the key of each."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints, model_validator

from gateway.urls import HttpUrl
from services.registry import Task

# It goes into a header: ASCII alone. A count in the pattern takes 20 MB.
Id = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:/-]+$", max_length=200)]


class Entry(BaseModel):
    """One `[[models]]` of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    id: Id
    task: Task = "text"
    kind: Literal["openai", "azure"] = "openai"
    base_url: Annotated[HttpUrl, StringConstraints(pattern=r"^https?://[^\s?#]+$")]
    model: Annotated[str, StringConstraints(pattern=r"^[\w.:/-]*$")] = ""  # the server's name of it; empty: the id
    api_version: Annotated[str, StringConstraints(pattern=r"^[\w.-]*$")] = ""
    api_key_env: str = ""
    api_key_file: Path | None = None
    fallbacks: tuple[str, ...] = ()
    asks_for_usage: bool = True  # of streams whose callers do not; False: for servers that know no such option
    key: Annotated[SecretStr, Field(exclude=True)] = SecretStr("")  # never in the file

    @model_validator(mode="after")
    def check_fits_kind(self) -> Self:
        """Refuse what is missing or too much."""
        if (self.kind == "azure") != bool(self.api_version):
            raise ValueError("api_version belongs to kind 'azure', and no other")
        if self.api_key_env and self.api_key_file:
            raise ValueError("api_key_env and api_key_file are two places for one key")
        return self

    @property
    def upstream(self) -> str:
        """What the server calls the model."""
        return self.model or self.id


class Entries(BaseModel):
    """The file; `fallbacks` are those of our own models."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    models: tuple[Entry, ...] = ()
    fallbacks: Mapping[str, tuple[str, ...]] = {}


def load_entries(file: Path, ours: Mapping[str, Task], environment: Mapping[str, str]) -> Entries:
    """Read the file, and the keys that it names.

    Args:
        file: TOML.
        ours: tasks of the models that our workers serve, by id: they are taken, and may be fallbacks.
        environment: where keys may be.

    Raises:
        ValueError: the file is no TOML, an entry does not fit, or a key is missing; the message names it.
        OSError: the file, or that of a key, cannot be read.
    """
    found = Entries.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
    if any(entry.key.get_secret_value() for entry in found.models):
        raise ValueError(f"{file.name}: a key is named by api_key_env or api_key_file, and never in the file")
    entries = tuple(with_key(entry, environment) for entry in found.models)
    tasks = {**ours, **{entry.id: entry.task for entry in entries}}
    if len(tasks) < len(ours) + len(entries):
        raise ValueError(f"{file.name}: a model id appears twice, or is one of ours")
    for model, others in {**found.fallbacks, **{entry.id: entry.fallbacks for entry in entries}}.items():
        if model in found.fallbacks and model not in ours:
            raise ValueError(f"{file.name}: [fallbacks] names '{model}', which is none of our models")
        for other in others:
            if tasks.get(other) != tasks[model] or other == model:
                raise ValueError(
                    f"{file.name}: '{model}' falls back on '{other}', which is no other {tasks[model]} model"
                )
    return found.model_copy(update={"models": entries})


def with_key(entry: Entry, environment: Mapping[str, str]) -> Entry:
    """Read the key from where the entry says it is."""
    if entry.api_key_file:
        key = entry.api_key_file.read_text(encoding="utf-8").strip()
    elif entry.api_key_env:
        key = environment.get(entry.api_key_env, "").strip()
    else:
        return entry
    if not key:
        raise ValueError(f"'{entry.id}': there is no key in {entry.api_key_env or entry.api_key_file}")
    return entry.model_copy(update={"key": SecretStr(key)})
