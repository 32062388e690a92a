"""The speech contract. Source: OpenAI's audio API, the fields we serve."""

from typing import Annotated, Literal

from pydantic import AfterValidator, StringConstraints

from services.schema import GenerationRequest, check_is_text

Input = Annotated[str, StringConstraints(min_length=1, max_length=4096), AfterValidator(check_is_text)]
Voice = Annotated[str, StringConstraints(min_length=1, max_length=100)]


class SpeechRequest(GenerationRequest):
    """Body of `POST /v1/audio/speech`.

    `voice` names one of the checkpoint's own presets; without it the model chooses a speaker.
    """

    input: Input
    voice: Voice | None = None
    response_format: Literal["wav"] = "wav"
