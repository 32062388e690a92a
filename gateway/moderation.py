"""An outside service that judges prompts, in the shape of OpenAI's `/v1/moderations`."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import httpx
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from gateway.errors import ContentRefused, ModerationUnavailable
from gateway.urls import HttpUrl

logger = logging.getLogger("atelier.gateway")

MAX_BYTES = 1_000_000  # of an answer; a verdict has some hundred
REFUSAL = "this prompt is against the content policy of whoever operates this service; ask for something else"


class Moderation(BaseModel):
    """Who is asked, and what happens when there is no answer."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: HttpUrl
    model: str | None = None
    timeout: Annotated[float, Field(gt=0, le=60, description="seconds")] = 3
    when_down: Literal["refuse", "allow"] = "refuse"


class Verdict(BaseModel):
    """The part of a result that is read."""

    flagged: bool


class Verdicts(BaseModel):
    """The part of an answer that is read."""

    results: Annotated[list[Verdict], Field(min_length=1)]


class Moderator:
    """Asks outside services about prompts."""

    def __init__(self, http: httpx.AsyncClient, api_key: SecretStr) -> None:
        """Ask over `http`, with the operator's key (empty: without)."""
        self._http = http
        key = api_key.get_secret_value()
        self._headers = {"accept-encoding": "identity", **({"authorization": f"Bearer {key}"} if key else {})}

    async def check(self, moderation: Moderation, prompts: Sequence[str]) -> None:
        """Ask about prompts.

        Raises:
            ContentRefused: one of them is flagged.
            ModerationUnavailable: there is no answer, and the operator wants none let pass without.
        """
        try:
            verdicts = await self._ask(moderation, prompts)
            if any(verdict.flagged for verdict in verdicts.results):
                raise ContentRefused(REFUSAL)
            if len(verdicts.results) < len(prompts):
                raise httpx.DecodingError("not all prompts have a verdict")
        except (httpx.HTTPError, TimeoutError, ValidationError) as error:
            logger.warning("the moderation gave no usable answer: %s", type(error).__name__)
            if moderation.when_down == "refuse":
                raise ModerationUnavailable("prompts cannot be checked right now; try again later") from error

    async def _ask(self, moderation: Moderation, prompts: Sequence[str]) -> Verdicts:
        body: dict[str, Any] = {"input": list(prompts)}
        if moderation.model is not None:
            body["model"] = moderation.model
        async with asyncio.timeout(moderation.timeout):
            async with self._http.stream("POST", moderation.url, json=body, headers=self._headers) as answer:
                answer.raise_for_status()
                said = b""
                async for chunk in answer.aiter_bytes():
                    said += chunk
                    if len(said) > MAX_BYTES:
                        raise httpx.DecodingError("this is no verdict", request=answer.request)
        return Verdicts.model_validate_json(said)
