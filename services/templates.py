"""What an operator adds to every prompt of a model, as the registry says."""

from typing import Any

from services.errors import InvalidRequest
from services.registry import Template
from services.schema import Job


def worded(job: Job, template: Template) -> Job:
    """Return `job` with the template's words in; where there is no prompt, such as for a picture, nothing is added.

    Raises:
        InvalidRequest: they cannot be put in.
    """
    fields = type(job).model_fields
    words: dict[str, Any] = {}
    if template.system and "preamble" in fields:
        words["preamble"] = template.system
    prompt = getattr(job, "prompt", None)
    if prompt is not None and (template.prefix or template.suffix):
        words["prompt"] = surrounded(prompt, template)
        if "said" in fields:
            words["said"] = prompt
    if prompt is not None and template.negative and "negative_prompt" in fields:
        given = getattr(job, "negative_prompt", None)
        words["negative_prompt"] = f"{given}, {template.negative}" if given else template.negative
    return job.model_copy(update=words) if words else job


def surrounded(prompt: Any, template: Template) -> Any:
    """Put a template's words around a prompt, or around each of several.

    Raises:
        InvalidRequest: it is given in numbers of tokens.
    """
    if isinstance(prompt, str):
        return f"{template.prefix}{prompt}{template.suffix}"
    if not all(isinstance(one, str) for one in prompt):
        message = "the operator's words surround every prompt of this model; send text, not numbers of tokens"
        raise InvalidRequest(message, param="prompt")
    return tuple(surrounded(one, template) for one in prompt)
