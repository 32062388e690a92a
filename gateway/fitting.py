"""Which model makes a film or a mesh, and whether it can make what is asked for: found out before a job is accepted."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi.exceptions import RequestValidationError
from pydantic import BeforeValidator, Field, ValidationError

from gateway.bodies import checked
from gateway.errors import UnknownModel
from gateway.state import State
from services.mesh.schema import MeshRequest
from services.registry import Modality, Model, Task, first_for, models_of
from services.schema import complete
from services.video.schema import TextVideoJob, VideoJob, VideoRequest

FILM_OF = "input_reference"  # the field of the picture
NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


def as_number(value: object) -> object:
    """Read a number of seconds as OpenAI has it, also in JSON: as a string."""
    return float(value) if isinstance(value, str) and NUMBER.fullmatch(value) else value


class NewVideo(VideoRequest):
    """Body of `POST /v1/videos`, multipart or JSON: the worker's, and `seconds` as the SDK sends them."""

    seconds: (
        Annotated[
            float,
            Field(gt=0, le=60, description="of film; instead of `num_frames`"),
            BeforeValidator(as_number, json_schema_input_type=float | str),
        ]
        | None
    ) = None


def film(state: State, body: NewVideo, *, has_picture: bool) -> tuple[str, dict[str, Any]]:
    """Return the model that films this, and what it is sent but for the picture.

    Raises:
        UnknownModel: there is none of that name.
        RequestValidationError: it cannot make that.
    """
    model = model_for(state, "video", body.model, "image" if has_picture else "text", FILM_OF)
    is_text = "text" in model.input_modalities
    defaults = {**model.defaults_in(state.profile)}
    fields = {**body.model_dump(exclude_none=True, exclude={"seconds"}), "model": model.id}
    fields.setdefault("fps", defaults.get("fps"))
    if body.seconds is not None and fields["fps"] is not None:  # else `check_fits` says that it is missing
        fields["num_frames"] = frames_of(body.seconds, fields["fps"], is_text)
    fields.setdefault("num_frames", defaults.get("num_frames"))
    fields.setdefault("size", defaults.get("size"))
    check_fits(TextVideoJob if is_text else VideoJob, checked(fields, VideoRequest), defaults)
    return model.id, fields


def model_for(state: State, task: Task, named: str | None, modality: Modality, field: str) -> Model:
    """Choose the model that makes something of a text, or of a picture: the named one, or the first that does.

    Args:
        state: of the application.
        task: what is to be made.
        named: by the caller.
        modality: what is there to make it from.
        field: of the picture.

    Raises:
        UnknownModel: no worker has one of that name.
        NotServed: the operator has configured no worker for it.
        RequestValidationError: it makes that of the other, or none does of this.
    """
    known = {model.id: model for model in models_of(task, state.models)}
    if named is not None and named not in known:
        state.catalog.serving(task, named)  # says what there is, unless it is a provider's
        raise UnknownModel(f"model '{named}' is a provider's; only workers' are asked here: {', '.join(known)}")
    model = first_for(modality, known.values()) if named is None else known[named]
    if model is None:
        other = "prompts alone" if modality == "image" else "pictures alone"
        raise unfit(field, f"does not fit: the models here work from {other}")
    if modality not in model.input_modalities:
        is_needed = "is required for" if modality == "text" else "is of no use to"
        source = "a picture" if modality == "text" else "a prompt"
        raise unfit(field, f"{is_needed} model '{model.id}', which works from {source}")
    state.catalog.worker(task, model.id)
    return model


def frames_of(seconds: float, fps: int, is_text: bool) -> int:
    """Frames of a film; a model for prompts makes the first alone, then four at a time."""
    number = max(2, round(seconds * fps))
    return 4 * round(number / 4) + 1 if is_text else number


def check_fits(contract: type[Any], body: VideoRequest, defaults: Mapping[str, Any]) -> None:
    """Refuse what the model would refuse when the job's turn has come."""
    try:
        complete(contract, body, defaults)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        raise RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in found]) from error


def mesh_model(state: State, body: MeshRequest) -> str:
    """Return the model that makes this.

    Raises:
        UnknownModel: there is none of that name.
        RequestValidationError: it makes meshes of the other: of pictures, or of prompts.
    """
    return model_for(state, "mesh", body.model, "text" if body.image is None else "image", "image").id


def unfit(field: str, sentence: str) -> RequestValidationError:
    """What is wrong with a field."""
    return RequestValidationError([{"type": "value_error", "loc": ("body", field), "msg": sentence, "input": None}])
