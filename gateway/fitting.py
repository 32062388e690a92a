"""Which model makes a film or a mesh, and whether it can make what is asked for: found out before a job is accepted."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi.exceptions import RequestValidationError
from pydantic import BeforeValidator, Field, ValidationError

from gateway.bodies import checked
from gateway.state import State
from services.mesh.schema import MeshRequest
from services.registry import Model, models_of
from services.schema import complete
from services.video.schema import TextVideoJob, VideoJob, VideoRequest

FILM_OF = "input_reference"  # the field of the picture
BY_PICTURE = "shap-e-img2img"  # makes meshes of pictures
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
    model = film_model(state, body, has_picture=has_picture)
    is_text = model.id == text_to_video(state)
    defaults = {**model.defaults_in(state.profile)}
    fields = {**body.model_dump(exclude_none=True, exclude={"seconds"}), "model": model.id}
    fields.setdefault("fps", defaults.get("fps"))
    if body.seconds is not None:
        fields["num_frames"] = frames_of(body.seconds, fields["fps"], is_text)
    fields.setdefault("num_frames", defaults.get("num_frames"))
    fields.setdefault("size", defaults.get("size"))
    check_fits(TextVideoJob if is_text else VideoJob, checked(fields, VideoRequest), defaults)
    return model.id, fields


def film_model(state: State, body: NewVideo, *, has_picture: bool) -> Model:
    """Choose the model that films this."""
    known = models_of("video", state.models)
    films_texts = text_to_video(state)
    state.catalog.serving("video", body.model)
    wanted = body.model or (films_texts if not has_picture else next(m.id for m in known if m.id != films_texts))
    if wanted != films_texts and not has_picture:
        raise unfit(FILM_OF, f"is required for model '{wanted}': a multipart form with a picture")
    if wanted == films_texts and has_picture:
        raise unfit(FILM_OF, f"is of no use: model '{wanted}' films a prompt and takes no picture")
    return next(model for model in known if model.id == wanted)


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


def text_to_video(state: State) -> str:
    """The model that films a prompt: the one whose defaults say how strictly."""
    models = models_of("video", state.models)
    return next((model.id for model in models if "guidance_scale" in model.defaults), models[0].id)


def mesh_model(state: State, body: MeshRequest) -> str:
    """Return the model that makes this.

    Raises:
        UnknownModel: there is none of that name.
        RequestValidationError: it makes meshes of the other: of pictures, or of prompts.
    """
    state.catalog.serving("mesh", body.model)
    texts = models_of("mesh", state.models)[0].id
    model = body.model or (texts if body.image is None else BY_PICTURE)
    if model == texts and body.image is not None:
        raise unfit("image", f"is of no use: model '{model}' makes meshes of a prompt")
    if model == BY_PICTURE and body.image is None:
        raise unfit("image", f"is required for model '{model}'")
    return model


def unfit(field: str, sentence: str) -> RequestValidationError:
    """What is wrong with a field."""
    return RequestValidationError([{"type": "value_error", "loc": ("body", field), "msg": sentence, "input": None}])
