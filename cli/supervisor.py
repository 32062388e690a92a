"""Keeps programs running until it is told to stop; knows nothing of what they do. Why our own: decision 0002."""

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx

from cli.child import Child, Program, bound
from cli.errors import NotStarted
from cli.guardian import Guardian

TICK_SECONDS = 0.5
FIRST_DELAY, LONGEST_DELAY = 0.1, 30.0  # seconds before a program is started again; doubled from failure to failure
MAX_FALSE_STARTS = 3  # a program that was never ready is not started more often
MAX_LOG_BYTES = 10_000_000
FAILED = "model_unavailable"  # the code of a server that waits for its operator


class Supervisor:
    """Starts programs, starts them again when they end, and stops them together.

    Args:
        programs: what to run.
        report: told in a line what happens.
        grace_seconds: how long a program may take to end when it is asked to.
    """

    def __init__(self, programs: Sequence[Program], report: Callable[[str], None], grace_seconds: float) -> None:
        self.programs = programs
        self.waiting_for = {program.name for program in programs}
        self.stopping = asyncio.Event()
        self.failures: dict[str, str] = {}
        self.settled = asyncio.Event()  # every program is ready, or has said why it will not be
        self._report = report
        self._grace_seconds = grace_seconds
        self._at_once = asyncio.Event()

    async def run(self) -> None:
        """Keep the programs running until SIGINT, SIGTERM or SIGHUP; a second one kills them.

        Raises:
            NotStarted: a program ended again and again before it was ready for the first time.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)
        guardian = Guardian(self._grace_seconds)
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=1) as http, asyncio.TaskGroup() as tasks:
                for program in self.programs:
                    tasks.create_task(self._keep(program, guardian, http))
        except* NotStarted as errors:
            raise errors.exceptions[0] from None
        finally:
            guardian.close()

    def _on_signal(self) -> None:
        if self.stopping.is_set():
            self._at_once.set()
        else:
            self._report("Stopping; once more stops at once.")
            self.stopping.set()

    async def _keep(self, program: Program, guardian: Guardian, http: httpx.AsyncClient) -> None:
        """Run the program again and again."""
        num_failures = 0
        while not self.stopping.is_set():
            child = await Child.start(program)
            guardian.add(child.process.pid)
            try:
                was_ready = await self._watch(child, http)
                ending = ": ".join(filter(None, (child.ending, child.last_words)))
            finally:
                await self._end(child)
                guardian.remove(child.process.pid)
            if self.stopping.is_set():
                return
            num_failures = 1 if was_ready else num_failures + 1
            if program.name in self.waiting_for and num_failures >= MAX_FALSE_STARTS:
                raise NotStarted(
                    f"{program.name} was not ready in {num_failures} attempts; it {ending} (log: {program.log})"
                )
            delay = min(FIRST_DELAY * 2 ** (num_failures - 1), LONGEST_DELAY)
            self._report(f"{program.name} {ending}; it is started again (log: {program.log})")
            await self._sleep(delay)

    async def _watch(self, child: Child, http: httpx.AsyncClient) -> bool:
        """Return when the child has ended, has lost its inner process or is to stop; whether it was ready by then."""
        started = time.monotonic()
        ended = asyncio.ensure_future(child.process.wait())
        is_ready = False
        while not (ended.done() or self.stopping.is_set() or (is_ready and child.is_hollow)):
            await self._sleep(TICK_SECONDS, ended)
            bound(child.program.log, MAX_LOG_BYTES)
            if not (is_ready or ended.done()):
                child.look_once()
                is_ready, failure = await ask(child.program.ready_url, http)
                if is_ready:
                    child.look()
                    self._note_ready(child.program, time.monotonic() - started)
                elif failure is not None:
                    self._note_failure(child.program, failure)
        ended.cancel()
        return is_ready

    async def _end(self, child: Child) -> None:
        if self.stopping.is_set():
            await child.end(self._grace_seconds, self._at_once)
        else:
            await child.kill()

    async def _sleep(self, seconds: float, *others: asyncio.Future[Any]) -> None:
        """Wait, but not once it is time to stop or one of `others` is done."""
        stop: asyncio.Future[Any] = asyncio.ensure_future(self.stopping.wait())
        await asyncio.wait({stop, *others}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()

    def _note_ready(self, program: Program, seconds: float) -> None:
        self._report(f"{program.name} is ready after {seconds:.1f} s")
        self.waiting_for.discard(program.name)
        self.failures.pop(program.name, None)
        self._settle()

    def _note_failure(self, program: Program, failure: str) -> None:
        if self.failures.get(program.name) != failure:
            self._report(f"{program.name} cannot serve: {failure} (log: {program.log})")
        self.failures[program.name] = failure
        self._settle()

    def _settle(self) -> None:
        if self.waiting_for <= self.failures.keys():
            self.settled.set()


async def ask(url: str | None, http: httpx.AsyncClient) -> tuple[bool, str | None]:
    """Whether a GET there gives 200 (no URL does always), and what the server says if it has failed for good."""
    if url is None:
        return True, None
    try:
        answer = await http.get(url)
        error = {} if answer.is_success else answer.json()["error"]
    except (httpx.TransportError, ValueError, KeyError, TypeError):
        return False, None
    return answer.status_code == httpx.codes.OK, error["message"] if error.get("code") == FAILED else None
