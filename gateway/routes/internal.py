"""What workers tell the gateway; for nobody else, and in no document."""

import hmac
from collections.abc import Sequence

from fastapi import APIRouter, Depends, Request, Response

from gateway.bodies import checked, read_object
from gateway.direct import body_of
from gateway.errors import NotAWorker
from gateway.jobs.calls import CALLS
from gateway.jobs.runner import reservation
from gateway.jobs.store import Store
from gateway.state import StateOf
from services.schema import TOKEN_HEADER, Receipt, ReceiptBatch

MAX_BYTES = 2_000_000  # of a batch


async def check_is_worker(request: Request, state: StateOf) -> None:
    """Refuse who does not have the token; where there is none, everybody."""
    token, offered = state.internal_token.encode(), request.headers.get(TOKEN_HEADER, "").encode()
    if not token or not hmac.compare_digest(offered, token):
        raise NotAWorker("this route is for the gateway's own workers")


router = APIRouter(prefix="/internal", include_in_schema=False, dependencies=[Depends(check_is_worker)])


@router.post("/receipts", status_code=204)
async def take_receipts(request: Request, state: StateOf) -> Response:
    """Write down what was made and settle for it; who gets no 204 sends the same again.

    The body is read here: as a parameter it would be before anybody has looked who sends it.
    """
    content = await body_of(request, MAX_BYTES)
    batch = checked(read_object(content, request.headers.get("content-type", "")), ReceiptBatch)
    receipts = [each for each in batch.receipts if not each.request_id.startswith(CALLS)]
    calls = [each for each in batch.receipts if each.request_id.startswith(CALLS)]
    if calls:
        receipts += await of_cancelled(calls, state.job_store)
    await state.receipts.take(receipts)
    return Response(status_code=204)


async def of_cancelled(calls: Sequence[Receipt], store: Store) -> list[Receipt]:
    """Choose what cancelled jobs had made, in the name of the requests that pay for it.

    Jobs that are done pay what they have come to, once; calls that were lost cost nobody anything.
    """
    paid_by = await store.settled_by_receipt({call.request_id.removeprefix(CALLS) for call in calls})
    found = [(call, paid_by.get((call.request_id.removeprefix(CALLS), call.attempt))) for call in calls]
    return [
        call.model_copy(update={"request_id": reservation(by[0], by[1]), "attempt": by[1] + 1})
        for call, by in found
        if by is not None
    ]
