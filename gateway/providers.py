"""Outside model servers: any that speaks OpenAI's chat completions."""

import asyncio

import httpx
from pydantic import BaseModel, SecretStr, ValidationError

from gateway.errors import NoProvider, ProviderFailed


class Message(BaseModel):
    """The part of a choice that is read."""

    content: str


class Choice(BaseModel):
    """The part of a completion that is read."""

    message: Message


class Completion(BaseModel):
    """A chat completion, as far as it is read."""

    choices: list[Choice]


class Provider:
    """One outside server."""

    def __init__(self, http: httpx.AsyncClient, base_url: str, api_key: SecretStr, model: str, deadline: float) -> None:
        """Take where it is (empty: nowhere), the operator's key, the model to ask for, and seconds to wait."""
        self._http = http
        self._base_url = base_url.rstrip("/")
        self._api_key = api_key
        self.model = model
        self._deadline = deadline

    async def chat(self, prompt: str) -> str:
        """Answer one message.

        Raises:
            NoProvider: none is configured.
            ProviderFailed: it does not answer, refuses, or answers something else.
        """
        if not self._base_url:
            raise NoProvider("no provider is configured; the operator sets ATELIER_OPENAI_BASE_URL")
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}]}
        key = self._api_key.get_secret_value()
        headers = {"authorization": f"Bearer {key}"} if key else {}
        url = f"{self._base_url}/chat/completions"
        try:
            async with asyncio.timeout(self._deadline):
                answer = await self._http.post(url, json=body, headers=headers)
        except (httpx.HTTPError, TimeoutError) as error:
            raise ProviderFailed("the provider does not answer") from error
        if not answer.is_success:
            raise ProviderFailed(f"the provider answered {answer.status_code}")
        try:
            return Completion.model_validate_json(answer.content).choices[0].message.content
        except (ValidationError, IndexError) as error:
            raise ProviderFailed("the provider's answer is no chat completion") from error
