"""Tells the gateway what was really made: receipts in small batches, on a thread of its own; knows no model."""

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from uuid import uuid4

import httpx
from prometheus_client import REGISTRY, CollectorRegistry, Counter
from starlette.requests import Request

from services.engine.generation import Tally, untold
from services.errors import InvalidRequest
from services.registry import Task
from services.schema import (
    ATTEMPT_HEADER,
    MAX_ATTEMPT,
    REQUEST_HEADER,
    TOKEN_HEADER,
    UNITS,
    Receipt,
    ReceiptBatch,
    Unit,
)
from services.secret_files import listed
from services.settings import Settings

CAPACITY = 10_000  # receipts that may wait; what comes on top is dropped
BATCH = 100
BATCH_SECONDS = 0.1  # that a receipt waits for company
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds between two tries
SEND_SECONDS = 5.0
REFUSALS = frozenset({400, 413, 415, 422})  # of these receipts, whoever sends them and whenever

ATTEMPT = re.compile("[1-9][0-9]{0,2}")

logger = logging.getLogger("atelier.receipts")


class Receipts:
    """A bounded queue, and the one thread that empties it.

    A receipt stays in the queue until the gateway has taken it, so the bound covers what is being sent too.
    """

    def __init__(
        self, task: Task, settings: Settings, registry: CollectorRegistry = REGISTRY, *, capacity: int = CAPACITY
    ) -> None:
        """Take from the settings where receipts go, if anywhere. Nothing is sent before `start`."""
        self._task = task
        tokens = listed(settings.internal_token)
        self._url = settings.receipts_url if tokens else ""  # without one the gateway takes none
        self._headers = {TOKEN_HEADER: tokens[0]} if tokens else {}
        self._capacity = capacity
        self._queue: deque[Receipt] = deque()
        self._wake = threading.Condition()
        self._is_closing = False
        self._give_up_at = 0.0
        self._dropped = Counter(
            "atelier_receipts_dropped", "Receipts that the gateway never got", ("modality",), registry=registry
        ).labels(task)
        self._thread = threading.Thread(target=self._work, name="receipts", daemon=True)

    def start(self) -> None:
        """Start sending."""
        if self._url:
            self._thread.start()

    def close(self, patience: float = 3) -> None:
        """Send what waits, for at most `patience` seconds, and stop."""
        with self._wake:
            self._is_closing = True
            self._give_up_at = time.monotonic() + patience
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(patience + SEND_SECONDS)

    def teller(self, request: Request) -> Callable[[Tally], None]:
        """Return what writes the receipt for `request`; it may be called from any thread.

        Raises:
            InvalidRequest: the attempt is no number that the gateway would give.
        """
        request_id = request.headers.get(REQUEST_HEADER, "")[:128]
        if not self._url or not request_id:
            return untold
        return partial(self._tell, request_id, attempt_of(request))

    def _tell(self, request_id: str, attempt: int, tally: Tally) -> None:
        receipt = Receipt(
            id=uuid4().hex,
            request_id=request_id,
            attempt=attempt,
            modality=self._task,
            model=tally.model,
            units=units_of(tally.made),
            iterations=tally.iterations,
            queue_seconds=tally.queue_seconds,
            run_seconds=tally.run_seconds,
            ending=tally.ending.value,
        )
        with self._wake:
            if len(self._queue) >= self._capacity:
                self._dropped.inc()
                return
            self._queue.append(receipt)
            if len(self._queue) in (1, BATCH):
                self._wake.notify()

    def _work(self) -> None:
        pause = FIRST_PAUSE
        with httpx.Client(trust_env=False, timeout=SEND_SECONDS, headers=self._headers) as http:
            while batch := self._next():
                if self._is_settled(http, batch, is_first_try=pause == FIRST_PAUSE):
                    with self._wake:
                        for _ in batch:
                            self._queue.popleft()
                    pause = FIRST_PAUSE
                elif self._goes_on_after(pause):
                    pause = min(2 * pause, LONGEST_PAUSE)
                else:
                    break
        self._dropped.inc(len(self._queue))

    def _next(self) -> list[Receipt]:
        """Wait for receipts and for others to share their way; none when it is time to end."""
        with self._wake:
            self._wake.wait_for(lambda: self._queue or self._is_closing)
            self._wake.wait_for(lambda: len(self._queue) >= BATCH or self._is_closing, BATCH_SECONDS)
            return list(islice(self._queue, BATCH))

    def _is_settled(self, http: httpx.Client, batch: list[Receipt], *, is_first_try: bool) -> bool:
        """Send a batch; whether it need not be sent again."""
        body = ReceiptBatch(receipts=tuple(batch)).model_dump_json()
        try:
            answer = http.post(self._url, content=body, headers={"content-type": "application/json"})
        except httpx.HTTPError as error:
            problem = type(error).__name__
        else:
            if answer.is_success:
                return True
            problem = f"it answers {answer.status_code}"
            if answer.status_code in REFUSALS:
                logger.error("%d receipts are lost, the gateway refuses them: %s", len(batch), problem)
                self._dropped.inc(len(batch))
                return True
        if is_first_try:
            logger.warning("the gateway takes no receipts (%s); they wait", problem)
        return False

    def _goes_on_after(self, pause: float) -> bool:
        """Wait before the next try; whether there is one."""
        with self._wake:
            if not self._is_closing:
                self._wake.wait_for(lambda: self._is_closing, pause)
                return True
        time.sleep(FIRST_PAUSE)
        return time.monotonic() < self._give_up_at


def units_of(made: Mapping[str, float]) -> dict[Unit, float]:
    """Choose what is paid for."""
    counted = {unit: made[unit] for unit in UNITS if made.get(unit)}
    tokens = made.get("prompt_tokens", 0) + made.get("completion_tokens", 0)
    return {"tokens": tokens, **counted} if tokens else counted


def attempt_of(request: Request) -> int:
    """Return which attempt at the request this is.

    Raises:
        InvalidRequest: the header is no such number.
    """
    value = request.headers.get(ATTEMPT_HEADER, "1")
    if not ATTEMPT.fullmatch(value):
        raise InvalidRequest(f"{ATTEMPT_HEADER} must be a whole number from 1 to {MAX_ATTEMPT}", param=ATTEMPT_HEADER)
    return int(value)
