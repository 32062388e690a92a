"""What workers tell the gateway; for nobody else, and in no document."""

import hmac

from fastapi import APIRouter, Depends, Request, Response

from gateway.bodies import checked, read_object
from gateway.direct import body_of
from gateway.errors import NotAWorker
from gateway.jobs.books import CALLS
from gateway.state import StateOf
from services.schema import TOKEN_HEADER, ReceiptBatch

MAX_BYTES = 2_000_000  # of a batch


async def check_is_worker(request: Request, state: StateOf) -> None:
    """Refuse who has none of the tokens; where there are none, everybody."""
    offered = request.headers.get(TOKEN_HEADER, "").encode()
    if not any(hmac.compare_digest(offered, token.encode()) for token in state.internal_tokens):
        raise NotAWorker("this route is for the gateway's own workers")


router = APIRouter(prefix="/internal", include_in_schema=False, dependencies=[Depends(check_is_worker)])


@router.post("/receipts", status_code=204)
async def take_receipts(request: Request, state: StateOf) -> Response:
    """Write down what was made and settle for it; who gets no 204 sends the same again.

    The body is read here: as a parameter it would be before anybody has looked who sends it.
    """
    content = await body_of(request, MAX_BYTES)
    batch = checked(read_object(content, request.headers.get("content-type", "")), ReceiptBatch)
    calls = [each for each in batch.receipts if each.request_id.startswith(CALLS)]
    if calls:
        await state.books.take(calls)
    await state.receipts.take([each for each in batch.receipts if not each.request_id.startswith(CALLS)])
    return Response(status_code=204)
