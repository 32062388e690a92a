"""The gateway's stop waits for the rows of requests that the server has cut."""

import asyncio
import json
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from gateway.middleware import LastResort, UnderWay

LONG = 60.0  # seconds after which a wait counts as hung


def test_the_stop_waits_until_the_last_request_has_kept_its_row() -> None:
    async def stop() -> list[str]:
        under_way, is_cut, order = UnderWay(), asyncio.Event(), []

        async def request(name: str) -> None:
            with under_way:
                await is_cut.wait()
                order.append(name)

        requests = [asyncio.create_task(request(name)) for name in ("one", "other")]
        await asyncio.sleep(0)  # both begin
        ending = asyncio.create_task(under_way.end(LONG))
        await asyncio.sleep(0)
        assert not ending.done()
        is_cut.set()
        await ending
        order.append("closed")
        await asyncio.gather(*requests)
        return order

    assert asyncio.run(stop()) == ["one", "other", "closed"]


def test_a_stop_without_requests_waits_for_nobody_and_a_stuck_one_not_for_ever() -> None:
    async def stop() -> None:
        under_way = UnderWay()
        await under_way.end(LONG)
        with under_way:
            await under_way.end(0.01)

    asyncio.run(asyncio.wait_for(stop(), LONG))


def test_a_request_that_the_stop_cuts_before_its_answer_is_told_to_come_back() -> None:
    async def stop() -> list[Message]:
        is_waiting, sent = asyncio.Event(), []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            is_waiting.set()
            await asyncio.Event().wait()

        async def send(message: Message) -> None:
            sent.append(message)

        async def receive() -> Any:
            await asyncio.Event().wait()

        request = asyncio.create_task(LastResort(app)({"type": "http", "path": "/"}, receive, send))
        await is_waiting.wait()
        request.cancel()  # as the server does
        await request
        return sent

    start, body = asyncio.run(asyncio.wait_for(stop(), LONG))
    headers = dict(start["headers"])
    assert start["status"] == 503
    assert headers[b"retry-after"] == b"3"
    assert json.loads(body["body"])["error"]["code"] == "gateway_restarting"


def test_an_answer_that_the_stop_cuts_midway_stays_half_an_answer() -> None:
    async def stop() -> list[Message]:
        is_waiting, sent = asyncio.Event(), []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            is_waiting.set()
            await asyncio.Event().wait()

        async def send(message: Message) -> None:
            sent.append(message)

        request = asyncio.create_task(LastResort(app)({"type": "http"}, asyncio.Event().wait, send))  # type: ignore[arg-type]
        await is_waiting.wait()
        request.cancel()
        await asyncio.wait([request])
        assert request.cancelled()
        return sent

    assert [message["type"] for message in asyncio.run(stop())] == ["http.response.start"]
