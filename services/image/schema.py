"""The image contract. Source: OpenAI's images API and the Stable Diffusion pipeline's own parameters."""

from services.schema import GenerationRequest, Guidance, Prompt, Size, Steps


class ImageRequest(GenerationRequest):
    """Body of `POST /v1/images/generations`; what is left out takes the model's default."""

    prompt: Prompt
    negative_prompt: Prompt | None = None
    size: Size | None = None
    num_inference_steps: Steps | None = None
    guidance_scale: Guidance | None = None


class ImageJob(ImageRequest):
    """A request with the model's defaults in."""

    size: Size
    num_inference_steps: Steps
    guidance_scale: Guidance
