"""Which models exist and which worker serves each task; knows no library that runs them.

Source: `models.toml` beside this file, and the operator's own; `docs/models.md` explains an entry.
"""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from services.schema import SchedulerName

Task = Literal["text", "audio", "image", "video", "mesh"]
Profile = Literal["tiny", "hub"]
Kept = Literal["preload", "on_demand", "swap"]
Strategy = Literal[Kept, "external"]
Modality = Literal["text", "image"]
Dtype = Literal["float16", "bfloat16"]
Quantisation = Literal["int8", "int4"]

VoiceName = Annotated[str, StringConstraints(min_length=1, max_length=100)]

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


def by_themselves(voices: object) -> object:
    """Read a list of voices as such that are called what the checkpoint calls them."""
    return {voice: voice for voice in voices} if isinstance(voices, list) else voices


# By the names that callers use: the checkpoint's own of them.
Voices = Annotated[Mapping[VoiceName, VoiceName], Field(min_length=1), BeforeValidator(by_themselves)]


Example = Annotated[str, StringConstraints(min_length=1, max_length=200, strip_whitespace=True)]


class TinySource(BaseModel):
    """A checkpoint that this repository builds itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    defaults: Mapping[str, Any] = {}
    strategy: Kept | None = None  # None: that of the weights it stands for
    voices: Voices | None = None  # None: those of the weights it stands for


class HubFiles(BaseModel):
    """Files of a Hugging Face hub's repository at a pinned revision, with the terms they come under."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    repository: str
    revision: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
    files: tuple[str, ...] = Field(min_length=1, description="patterns of what is fetched")
    licence: str
    licence_url: str
    commercial_use: bool
    size_gb: float = Field(gt=0, description="download, in 10⁹ bytes")


class HubSource(HubFiles):
    """A model's own weights on the hub."""

    strategy: Kept
    variant: str | None = None
    dtype: Dtype = "float16"  # on an accelerator, where the operator says nothing
    safetensors: bool = True


class OwnTerms(BaseModel):
    """The terms of what is the operator's own, and his to know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    licence: str | None = None
    licence_url: str | None = None
    commercial_use: bool = True


class FolderSource(OwnTerms):
    """A folder of this machine in `save_pretrained` layout."""

    path: Path
    strategy: Kept = "preload"
    variant: str | None = None
    dtype: Dtype = "float16"
    safetensors: bool = True


class ExternalSource(OwnTerms):
    """Another worker of ours that serves the model under the same id."""

    url: Annotated[str, StringConstraints(pattern=r"^https?://[^\s/?#]+/?$")]


class AdapterFolder(OwnTerms):
    """A folder of this machine with an adapter."""

    path: Path


class Adapter(BaseModel):
    """Weights of low rank (LoRA) that a request may have added to a model's own.

    Args:
        name: what a request's `adapter` says.
        scale: what they are multiplied by.
        tiny: what stands for them beside a tiny checkpoint.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]+$", max_length=100)]
    scale: float = 1.0
    tiny: TinySource | None = None
    hub: HubFiles | None = None
    folder: AdapterFolder | None = None

    @model_validator(mode="after")
    def check_has_one_source(self) -> Self:
        """Refuse what could not be loaded, or could be loaded from two places."""
        if (self.hub or self.folder or self.tiny) is None or None not in (self.hub, self.folder):
            raise ValueError("an adapter has its weights from one place: hub or folder")
        return self

    @property
    def source(self) -> HubFiles | AdapterFolder | None:
        """Where its own weights are; None: there are tiny ones alone."""
        return self.hub or self.folder

    @property
    def terms(self) -> HubFiles | AdapterFolder | None:
        """What knows the licence."""
        return self.source

    def is_tiny_in(self, profile: Profile) -> bool:
        """Whether weights that are built here stand for it under `profile`."""
        return self.tiny is not None and (profile == "tiny" or self.source is None)


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

ADAPTED: frozenset[Task] = frozenset({"text", "image"})  # tasks whose models can have adapters
QUANTISATIONS: Mapping[Task, tuple[Quantisation, ...]] = MappingProxyType(  # what the models of a task can be kept in
    {"text": ("int8", "int4"), "audio": (), "image": ("int8",), "video": ("int8",), "mesh": ("int8",)}
)


INPUTS: Mapping[Task, tuple[Modality, ...]] = MappingProxyType(  # where all models of a task take the same
    {"text": ("text",), "audio": ("text",), "image": ("text", "image")}
)


class Refusal(NamedTuple):
    """Why a model does not do what a request asks for: the field, a sentence, and a code for programs."""

    field: str
    message: str
    code: str


class Model(BaseModel):
    """One entry of `models.toml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:/-]+$", max_length=200)]  # headers carry it
    task: Task
    profile: Profile | None = None  # the only one that it is served under; None: both
    defaults: Mapping[str, Any] = {}
    examples: Annotated[tuple[Example, ...], Field(max_length=8)] = ()  # of what to ask it for
    input_modalities: Annotated[tuple[Modality, ...], Field(validate_default=True)] = ()
    template: Template = Template()
    voices: Voices | None = None  # None: the checkpoint's, which are known when it has been loaded
    schedulers: tuple[SchedulerName, ...] | None = None  # that requests may name; None: all that its task has
    pinned: bool = False
    dtype: Literal["float32", "float16", "bfloat16"] | None = None  # on any device; None: as the settings have it
    quantisation: Quantisation | None = None  # of its weights in memory; None: as the settings have it
    adapters: tuple[Adapter, ...] = ()
    tiny: TinySource | None = None
    hub: HubSource | None = None
    folder: FolderSource | None = None
    external: ExternalSource | None = None

    @field_validator("input_modalities")
    @classmethod
    def check_inputs(cls, given: tuple[Modality, ...], others: ValidationInfo) -> tuple[Modality, ...]:
        """Fill in what all models of a task take; a film or a mesh is made from a text or from a picture."""
        task = others.data.get("task")
        known = INPUTS.get(task) if task is not None else ("text", "image")
        if known is None and len(given) != 1:
            raise ValueError(f"models for {task} are made for texts or for pictures: say ['text'] or ['image']")
        if known is not None and not set(given) <= set(known):
            raise ValueError(f"models for {task} take {' and '.join(known)}")
        return given or known or ()

    @field_validator("template")
    @classmethod
    def check_template(cls, template: Template, others: ValidationInfo) -> Template:
        """Refuse what would be passed over in silence."""
        unfit = template.parts - TEMPLATES.get(others.data.get("task", ""), template.parts)
        if unfit:
            raise ValueError(f"models of this task have no use for: {', '.join(sorted(unfit))}")
        return template

    @field_validator("quantisation")
    @classmethod
    def check_quantisation(cls, chosen: Quantisation | None, others: ValidationInfo) -> Quantisation | None:
        """Refuse what the task's worker cannot do."""
        known = QUANTISATIONS.get(others.data.get("task", "text"), ())
        if chosen is not None and chosen not in known:
            raise ValueError(f"models of this task are kept in {' or '.join(known) or 'floating point alone'}")
        return chosen

    @field_validator("adapters")
    @classmethod
    def check_adapters(cls, adapters: tuple[Adapter, ...], others: ValidationInfo) -> tuple[Adapter, ...]:
        """Refuse what no request could name, or no worker can add."""
        if adapters and others.data.get("task", "text") not in ADAPTED:
            raise ValueError(f"models of this task take none; those for {' and '.join(sorted(ADAPTED))} do")
        if len({adapter.name for adapter in adapters}) < len(adapters):
            raise ValueError("a name appears twice")
        return adapters

    @model_validator(mode="after")
    def check_has_one_source(self) -> Self:
        """Refuse what could not be loaded, or could be loaded from two places."""
        if sum(source is not None for source in (self.hub, self.folder, self.external)) != 1:
            raise ValueError("a model comes from one place: hub, folder or external")
        return self

    @model_validator(mode="after")
    def check_fits_source(self) -> Self:
        """Refuse what the worker that serves it elsewhere would never hear of, and a model that is to stay and go."""
        elsewhere = {"tiny", "template", "pinned", "quantisation"} & self.model_fields_set
        if self.is_external and elsewhere:
            raise ValueError(f"{sorted(elsewhere)[0]}: is for the worker that serves it to know, in its own file")
        if self.pinned and "swap" in {self.strategy_in(profile) for profile in get_args(Profile)}:
            raise ValueError("pinned: with strategy 'swap' it makes room for others, and pinned it never does")
        return self

    @model_validator(mode="after")
    def check_choices(self) -> Self:
        """Refuse voices and schedulers where there are none, and defaults that are not among what there is."""
        for name, task in (("voices", "audio"), ("schedulers", "image")):
            if getattr(self, name) is not None and self.task != task:
                raise ValueError(f"{name}: models for {self.task} have none")
        for profile in get_args(Profile):
            if refused := self.refusal_of(profile, self.defaults_in(profile)):
                raise ValueError(f"defaults.{refused.field}: {refused.message}")
        return self

    @property
    def source(self) -> HubSource | FolderSource:
        """Where its own weights are.

        Raises:
            TypeError: on another worker.
        """
        source = self.hub or self.folder
        if source is None:
            raise TypeError("a model that another worker serves has no weights here")
        return source

    @property
    def terms(self) -> HubSource | FolderSource | ExternalSource:
        """What knows the licence."""
        return self.external or self.source

    @property
    def is_external(self) -> bool:
        """Whether another worker serves it than that of its task."""
        return self.external is not None

    @property
    def owners(self) -> dict[str, "Model | Adapter"]:
        """What has weights, and terms, of its own: the model by its id, its adapters by `id:name`."""
        return {self.id: self, **{f"{self.id}:{adapter.name}": adapter for adapter in self.adapters}}

    @property
    def hub_files(self) -> dict[str, HubFiles]:
        """What this machine needs of the hub, by its owner's name."""
        if self.is_external:
            return {}
        return {name: owner.hub for name, owner in self.owners.items() if owner.hub is not None}

    def is_tiny_in(self, profile: Profile) -> bool:
        """Whether a checkpoint that is built here stands for it under `profile`."""
        return profile == "tiny" and self.tiny is not None

    def defaults_in(self, profile: Profile) -> Mapping[str, Any]:
        """The request defaults under `profile`; a tiny checkpoint may override the real model's."""
        if self.tiny is None or profile != "tiny":
            return self.defaults
        return {**self.defaults, **self.tiny.defaults}

    def revision_in(self, profile: Profile) -> str:
        """What its weights are under `profile`: the hub's commit, a folder's name, or the recipe of a tiny one."""
        if self.tiny is not None and profile == "tiny":
            return f"tiny:{self.tiny.recipe}"
        if isinstance(self.source, FolderSource):
            return f"folder:{self.source.path.name}"
        return f"{self.source.repository}@{self.source.revision}"

    def strategy_in(self, profile: Profile) -> Strategy:
        """When it is in memory under `profile`, and for how long."""
        if self.is_external:
            return "external"
        tiny = self.tiny.strategy if self.tiny is not None and profile == "tiny" else None
        return tiny or self.source.strategy

    def is_preloaded_in(self, profile: Profile) -> bool:
        """Whether a worker loads this model when it starts, and not when it is first asked for."""
        return self.strategy_in(profile) == "preload"

    def voices_in(self, profile: Profile) -> Voices | None:
        """The voices of what is loaded under `profile`, by their names; None: all of the checkpoint's."""
        tiny = self.tiny.voices if self.tiny is not None and profile == "tiny" else None
        return tiny or self.voices

    @property
    def offered_schedulers(self) -> tuple[SchedulerName, ...] | None:
        """Those that requests may name; None: models of this task take none."""
        if self.task != "image":
            return None
        return get_args(SchedulerName) if self.schedulers is None else self.schedulers

    @property
    def adapter_names(self) -> tuple[str, ...]:
        """What a request's `adapter` may say."""
        return tuple(adapter.name for adapter in self.adapters)

    def refusal_of(self, profile: Profile, fields: Mapping[str, Any]) -> Refusal | None:
        """Say which field of a request names what this model does not have, and what it has."""
        offered = {
            "voice": self.voices_in(profile),
            "scheduler": self.offered_schedulers,
            "adapter": self.adapter_names,
        }
        for field, choices in offered.items():
            chosen = fields.get(field)
            if chosen is not None and choices is not None and chosen not in choices:
                there_are = f"choose one of: {', '.join(choices)}" if choices else "leave it out"
                code = "unknown_adapter" if field == "adapter" else "invalid_value"
                return Refusal(field, f"there is no {field} '{chosen}' for model '{self.id}'; {there_are}", code)
        return None


Owner = TypeVar("Owner", Model, Adapter)


class Entries(BaseModel):
    """A file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[Model, ...]


def load_models(own: Path | None = None, profile: Profile | None = None) -> tuple[Model, ...]:
    """Read the registry.

    Args:
        own: the operator's file. An entry replaces ours of the same id, or comes after all of ours.
        profile: whose models; None: all.

    Raises:
        ValueError: a file cannot be read, is no TOML or an entry does not fit; the message names file and field.
    """
    found = {model.id: model for model in read_models(MODELS_FILE)}
    for model in read_models(own) if own is not None else ():
        if model.id in found and found[model.id].task != model.task:
            raise ValueError(f"{own}: '{model.id}' is a model for {found[model.id].task} and remains one")
        found[model.id] = model
    return tuple(model for model in found.values() if None in (profile, model.profile) or profile == model.profile)


def read_models(file: Path) -> tuple[Model, ...]:
    """Read one file.

    Raises:
        ValueError: it cannot be read, is no TOML or an entry does not fit; the message names file and field.
    """
    try:
        entries = tomllib.loads(file.read_text(encoding="utf-8"))
        models = Entries.model_validate(entries).models
    except ValidationError as error:
        raise ValueError(f"{file}: {_first_problem(error, entries)}") from error
    except OSError as error:
        raise ValueError(f"{file}: {(error.strerror or str(error)).lower()}") from error
    except ValueError as error:  # no UTF-8, or no TOML
        raise ValueError(f"{file}: {error}") from error
    ids = [model.id for model in models]
    if len(set(ids)) < len(ids):
        raise ValueError(f"{file}: a model id appears twice")
    return tuple(_anchored(model, file.parent) for model in models)


def _first_problem(error: ValidationError, entries: Mapping[str, Any]) -> str:
    """Say which field of which entry does not fit, and why."""
    problem = error.errors(include_url=False)[0]
    table, *place = problem["loc"]
    said = problem["msg"].removeprefix("Value error, ")
    if not place:
        return f"{table}: {said}"
    entry = entries["models"][place[0]]
    name = f"'{entry['id']}'" if isinstance(entry, Mapping) and "id" in entry else f"entry {int(place[0]) + 1}"
    return ": ".join(filter(None, (name, ".".join(map(str, place[1:])), said)))


def _anchored(model: Model, folder: Path) -> Model:
    """Let relative paths begin where the file is."""
    adapters = tuple(_begun_at(folder, adapter) for adapter in model.adapters)
    return _begun_at(folder, model).model_copy(update={"adapters": adapters})


def _begun_at(folder: Path, owner: Owner) -> Owner:
    if owner.folder is None:
        return owner
    path = (folder / owner.folder.path.expanduser()).absolute()
    return owner.model_copy(update={"folder": owner.folder.model_copy(update={"path": path})})


def choices_of(request: BaseModel) -> dict[str, Any]:
    """What of a request a model has to offer by name."""
    return {field: getattr(request, field, None) for field in ("voice", "scheduler", "adapter")}


def local_models_of(task: Task, models: tuple[Model, ...]) -> tuple[Model, ...]:
    """Those that the worker of `task` loads itself."""
    return tuple(model for model in models_of(task, models) if not model.is_external)


def first_for(modality: Modality, models: Iterable[Model]) -> Model | None:
    """The first of `models` that is made for this; it is asked where a request names none."""
    return next((model for model in models if modality in model.input_modalities), None)


def models_of(task: Task, models: tuple[Model, ...]) -> tuple[Model, ...]:
    """The models of `task`, in the order of the file: the first is the task's default."""
    return tuple(model for model in models if model.task == task)
