"""What workers tell the gateway; for nobody else, and in no document."""

import hmac

from fastapi import APIRouter, Depends, Request, Response

from gateway.errors import NotAWorker
from gateway.jobs.books import CALLS
from gateway.state import StateOf
from services.schema import TOKEN_HEADER, ReceiptBatch


async def check_is_worker(request: Request, state: StateOf) -> None:
    """Refuse who does not have the token; where there is none, everybody."""
    token, offered = state.internal_token.encode(), request.headers.get(TOKEN_HEADER, "").encode()
    if not token or not hmac.compare_digest(offered, token):
        raise NotAWorker("this route is for the gateway's own workers")


router = APIRouter(prefix="/internal", include_in_schema=False, dependencies=[Depends(check_is_worker)])


@router.post("/receipts", status_code=204)
async def take_receipts(batch: ReceiptBatch, state: StateOf) -> Response:
    """Write down what was made and settle for it; who gets no 204 sends the same again."""
    calls = [each for each in batch.receipts if each.request_id.startswith(CALLS)]
    if calls:
        await state.books.take(calls)
    await state.receipts.take([each for each in batch.receipts if not each.request_id.startswith(CALLS)])
    return Response(status_code=204)
