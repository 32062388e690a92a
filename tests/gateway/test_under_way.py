"""The gateway's stop waits for the rows of requests that the server has cut."""

import asyncio

from gateway.middleware import UnderWay

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
