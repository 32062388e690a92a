"""Encoders of the workers, with nothing special about them."""

from services.audio.answers import SpeechEncoder
from services.image.answers import PictureEncoder
from services.image.schema import ImageJob
from services.provenance import Provenance

PROVENANCE = Provenance("a-model", "a-revision", 3, {"size": "64x64"})


def png_encoder() -> PictureEncoder:
    job = ImageJob(prompt="a cat", size="64x64", num_inference_steps=1, guidance_scale=1)
    return PictureEncoder(job, PROVENANCE)


def wav_encoder(speed: float = 1.0) -> SpeechEncoder:
    return SpeechEncoder("wav", speed, PROVENANCE)
