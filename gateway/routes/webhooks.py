"""What receivers of webhooks verify them with."""

from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from gateway.state import StateOf

router = APIRouter(tags=["webhooks"])


class WebhookSecret(BaseModel):
    """The secret of the key that asks."""

    secret: Annotated[str, Field(description="as the OpenAI SDK takes it: OpenAI(webhook_secret=…)")]


@router.get("/v1/webhooks/secret")
async def secret(request: Request, state: StateOf) -> WebhookSecret:
    """Return what the webhooks of this key's jobs are signed with."""
    return WebhookSecret(secret=state.webhooks.secret_of(request.scope["caller"].id))
