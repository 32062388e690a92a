"""Which models exist and which worker serves each task; knows no library that runs them.

Source: `models.toml` beside this file; `docs/models.md` explains an entry.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator

Task = Literal["text", "audio", "image", "video", "mesh"]
Profile = Literal["tiny", "hub"]

MODELS_FILE = Path(__file__).with_name("models.toml")


class Worker(BaseModel):
    """The process that serves a task: what `bentoml serve` takes, and its port on loopback."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: str
    port: int


WORKERS: Mapping[Task, Worker] = MappingProxyType(
    {
        "text": Worker(target="services.text.service:TextService", port=3001),
        "audio": Worker(target="services.audio.service:AudioService", port=3002),
        "image": Worker(target="services.image.service:ImageService", port=3003),
        "video": Worker(target="services.video.service:VideoService", port=3004),
        "mesh": Worker(target="services.mesh.service:MeshService", port=3005),
    }
)


class TinySource(BaseModel):
    """A checkpoint that this repository builds itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    defaults: Mapping[str, Any] = {}


class HubSource(BaseModel):
    """A repository of the Hugging Face hub at a pinned revision, with the terms its weights come under."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    repository: str
    revision: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
    licence: str
    licence_url: str
    commercial_use: bool
    strategy: Literal["preload", "on_demand"]
    files: tuple[str, ...] = Field(min_length=1, description="patterns of what is fetched")
    variant: str | None = None
    dtype: Literal["float16", "bfloat16"] = "float16"  # on an accelerator, where the operator says nothing
    safetensors: bool = True
    size_gb: float = Field(gt=0, description="download, in 10⁹ bytes")


class Template(BaseModel):
    """What the operator adds to every prompt of a model; the caller's own words stay between.

    Args:
        system: goes before the system's turn of a chat, the caller's or the model's default.
        prefix: goes before a prompt.
        suffix: goes behind it, such as ", oil on canvas".
        negative: is added to what a picture must not show.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: str = ""
    prefix: str = ""
    suffix: str = ""
    negative: str = ""

    @property
    def parts(self) -> set[str]:
        """The names of what it says."""
        return set(self.model_dump(exclude_defaults=True))


TEMPLATES: Mapping[Task, frozenset[str]] = MappingProxyType(  # what the models of a task can be told
    {
        "text": frozenset({"system"}),
        "audio": frozenset(),  # it would say it aloud
        "image": frozenset({"prefix", "suffix", "negative"}),
        "video": frozenset({"prefix", "suffix", "negative"}),
        "mesh": frozenset({"prefix", "suffix"}),
    }
)


class Model(BaseModel):
    """One entry of `models.toml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    task: Task
    defaults: Mapping[str, Any] = {}
    template: Template = Template()
    tiny: TinySource
    hub: HubSource

    @field_validator("template")
    @classmethod
    def check_template(cls, template: Template, others: ValidationInfo) -> Template:
        """Refuse what would be passed over in silence."""
        unfit = template.parts - TEMPLATES.get(others.data.get("task", ""), template.parts)
        if unfit:
            raise ValueError(f"models of this task have no use for: {', '.join(sorted(unfit))}")
        return template

    def defaults_in(self, profile: Profile) -> Mapping[str, Any]:
        """The request defaults under `profile`; a tiny checkpoint may override the real model's."""
        return {**self.defaults, **self.tiny.defaults} if profile == "tiny" else self.defaults

    def revision_in(self, profile: Profile) -> str:
        """What its weights are under `profile`: a commit of the hub's, or the recipe that a tiny one is built by."""
        return f"tiny:{self.tiny.recipe}" if profile == "tiny" else f"{self.hub.repository}@{self.hub.revision}"

    def is_preloaded_in(self, profile: Profile) -> bool:
        """Whether a worker loads this model when it starts, and not when it is first asked for."""
        return profile == "tiny" or self.hub.strategy == "preload"


def load_models(file: Path = MODELS_FILE) -> tuple[Model, ...]:
    """Read the registry.

    Raises:
        ValueError: the file is no TOML or an entry does not fit; the message names the field.
    """
    entries = tomllib.loads(file.read_text(encoding="utf-8"))
    models = tuple(Model.model_validate(entry) for entry in entries["models"])
    ids = [model.id for model in models]
    if len(set(ids)) < len(ids):
        raise ValueError(f"{file.name}: a model id appears twice")
    return models


def models_of(task: Task, models: tuple[Model, ...]) -> tuple[Model, ...]:
    """The models of `task`, in the order of the file: the first is the task's default."""
    return tuple(model for model in models if model.task == task)
