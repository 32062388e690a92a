"""Which workers and providers serve a model, and which workers are well right now."""

import asyncio
import random
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, Self

import httpx
from pydantic import BaseModel, ValidationError

from gateway.balance import Replica, Replicas, State
from gateway.errors import NoProvider, NotServed, UnknownModel, WorkerUnreachable
from gateway.providers import Provider
from gateway.refusals import refusal
from services.registry import Model, Task

PROBE_SECONDS = 2.0
ASK_SECONDS = 5.0
ModelState = Literal["cold", "loading", "ready", "failed", "unreachable", "external"]
FAILED = b'"model_unavailable"'  # a model that the operator has to do something about
JITTER = (0.75, 1.25)  # of the interval: several gateways shall not all ask at once


@dataclass(frozen=True)
class Ours:
    """A worker's model; `model` is its id where the body names another, or None."""

    replicas: Replicas
    model: str | None = None

    @property
    def id(self) -> str:
        """Its name among models; empty where the body's own counts."""
        return self.model or ""


Target = Ours | Provider


class Seen(BaseModel):
    """How a model is.

    Args:
        failure: why it is not in memory, in a sentence.
        num_bytes: of its weights; None: it has not been in memory yet.
        num_waiting: requests in the queues of its workers; None: nobody knows.
        num_active: requests in progress.
        batch_size: how many of those shared the latest forward, of one worker at most.
    """

    state: ModelState
    failure: str | None = None
    num_bytes: int | None = None
    num_waiting: int | None = None
    num_active: int | None = None
    batch_size: int | None = None

    def beside(self, other: "Seen") -> Self:
        """Return how a model is that another worker serves as well: as here, with the work of both."""
        return self.model_copy(
            update={
                "num_waiting": added(self.num_waiting, other.num_waiting),
                "num_active": added(self.num_active, other.num_active),
                "batch_size": max(
                    (each for each in (self.batch_size, other.batch_size) if each is not None), default=None
                ),
            }
        )


def added(one: int | None, other: int | None) -> int | None:
    """Add what is known."""
    return other if one is None else one + (other or 0)


class ListedModel(Seen):
    """A model, as a worker tells of it."""

    id: str


class Listed(BaseModel):
    """What a worker serves."""

    data: list[ListedModel]


@dataclass(frozen=True)
class Health:
    """Of the replicas of a task."""

    state: State
    num_ready: int
    num_replicas: int


class Catalog:
    """The workers by task, and the providers by model."""

    def __init__(
        self,
        workers: Mapping[Task, Sequence[str]],
        models: Sequence[Model],
        providers: Sequence[Provider],
        fallbacks: Mapping[str, Sequence[str]],
        outside: str,
        http: httpx.AsyncClient,
        interval: float,
    ) -> None:
        """Know who serves what.

        Args:
            workers: base URLs of replicas.
            models: what our workers serve.
            providers: an id that our workers serve as well is theirs.
            fallbacks: of models of ours.
            outside: id of the provider's model that is asked where nobody names one.
            http: to ask workers for their health with.
            interval: how often, in seconds.
        """
        self._workers = {task: Replicas(urls) for task, urls in workers.items()}
        self._tasks = {model.id: model.task for model in models}
        self._outside = outside
        self._providers = {provider.id: provider for provider in providers}
        self.created = int(time.time())
        self._fallbacks = {**{provider.id: provider.fallbacks for provider in providers}, **fallbacks}
        self._http = http
        self._interval = interval
        self._look: asyncio.Task[None] | None = None

    def worker(self, task: Task) -> tuple[Target, ...]:
        """Our worker for `task`.

        Raises:
            NotServed: the operator has configured none.
        """
        return (self._ours(task),)

    def _ours(self, task: Task, model: str | None = None) -> Ours:
        if task not in self._workers:
            raise NotServed(f"no {task} worker is configured; the operator sets ATELIER_{task.upper()}_URL")
        return Ours(self._workers[task], model)

    def serving(self, task: Task, model: str | None) -> tuple[Target, ...]:
        """Who serves `model`, and who does instead if that one declines, in this order; None: our worker's default.

        Raises:
            UnknownModel: nobody.
            NotServed: our worker does, and there is none.
        """
        if model is None or self._tasks.get(model) == task:
            asked_for = model or next((ours for ours, of in self._tasks.items() if of == task), "")
            return (*self.worker(task), *self._instead(task, asked_for))
        provider = self._providers.get(model)
        if provider is None or provider.task != task:
            served = ", ".join(self.models(task))
            raise UnknownModel(f"model '{model[:200]}' is not served here; choose one of: {served}")
        return (provider, *self._instead(task, model))

    def _instead(self, task: Task, model: str) -> tuple[Target, ...]:
        return tuple(
            self._ours(task, other) if other in self._tasks else self._providers[other]
            for other in self._fallbacks.get(model, ())
            if other in self._providers or task in self._workers
        )

    def models(self, task: Task) -> list[str]:
        """The ids of all models for `task`."""
        ours = [model for model, of in self._tasks.items() if of == task and task in self._workers]
        theirs = [provider.id for provider in self._providers.values() if provider.task == task]
        return list(dict.fromkeys(ours + theirs))

    @property
    def outside_model(self) -> str:
        """The provider's model that is asked where nobody names one; there may be none."""
        return self._outside

    def outside(self) -> tuple[Provider, ...]:
        """The provider that is asked where nobody names a model.

        Raises:
            NoProvider: there is none.
        """
        if self._outside not in self._providers:
            raise NoProvider("no provider is configured; the operator sets ATELIER_OPENAI_BASE_URL")
        return (self._providers[self._outside],)

    async def ask(self, task: Task, path: str, **query: str) -> bytes:
        """Return what our worker for `task` says under `path`, which costs it next to nothing.

        Raises:
            NotServed: the operator has configured none.
            WorkerUnreachable: none answers.
            WorkerRefused: the one that does says anything but a success.
        """
        for replica in self._ours(task).replicas.in_order():
            question = self._http.build_request("GET", f"{replica.url}{path}", params=query, timeout=ASK_SECONDS)
            with suppress(httpx.RequestError):
                answer = await self._http.send(question, stream=True)
                if not answer.is_success:
                    raise await refusal(answer, {})
                try:
                    return await answer.aread()
                finally:
                    await answer.aclose()
        raise WorkerUnreachable("the worker for this does not answer; it may be starting")

    async def tell(self, task: Task, path: str, headers: Mapping[str, str]) -> None:
        """Post to all of our workers for `task` that answer.

        Raises:
            NotServed: the operator has configured none.
            WorkerUnreachable: none answers.
            WorkerRefused: one says anything but a success.
        """
        has_answered = False
        for replica in self._ours(task).replicas.all:
            url = f"{replica.url}{path}"
            order = self._http.build_request("POST", url, json={}, headers=headers, timeout=ASK_SECONDS)
            with suppress(httpx.RequestError):
                answer = await self._http.send(order, stream=True)
                try:
                    if not answer.is_success:
                        raise await refusal(answer, {})
                finally:
                    await answer.aclose()
                has_answered = True
        if not has_answered:
            raise WorkerUnreachable("the worker for this does not answer; it may be starting")

    async def states(self, tasks: Collection[Task]) -> dict[str, Seen]:
        """How our models for `tasks` are, by id."""
        served = [task for task in tasks if task in self._workers]
        found = await asyncio.gather(*map(self._states_of, served))
        return {model: state for states in found for model, state in states.items()}

    async def _states_of(self, task: Task) -> dict[str, Seen]:
        states = {model: Seen(state="unreachable") for model, of in self._tasks.items() if of == task}
        replicas = self._ours(task).replicas.in_order()
        for listed in reversed(await asyncio.gather(*map(self._listed, replicas))):  # the first one's word counts
            for each in listed:
                if each.id in states:
                    states[each.id] = each.beside(states[each.id])
        return states

    async def _listed(self, replica: Replica) -> list[ListedModel]:
        """What a replica says of its models; nothing where it does not answer."""
        try:
            answer = await self._http.get(f"{replica.url}/v1/models", timeout=ASK_SECONDS)
            return Listed.model_validate_json(answer.content).data if answer.is_success else []
        except (httpx.RequestError, ValidationError):
            return []

    async def health(self) -> dict[Task, Health]:
        """Ask all replicas at once; who asks meanwhile hears what comes of it too."""
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(self._look_at_all())
        await asyncio.shield(self._look)
        return {task: Health(worker.state, worker.num_ready, len(worker.all)) for task, worker in self._workers.items()}

    async def _look_at_all(self) -> None:
        await asyncio.gather(*(self._look_at(replica) for worker in self._workers.values() for replica in worker.all))

    async def __aenter__(self) -> Self:
        """Look at all replicas again and again from now on."""
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *error: object) -> None:
        """Look no more."""
        tasks = [self._watching, *([self._look] if self._look is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    async def _watch(self) -> None:
        while True:
            await self.health()
            await asyncio.sleep(self._interval * random.uniform(*JITTER))

    async def _look_at(self, replica: Replica) -> None:
        try:
            answer = await self._http.get(f"{replica.url}/readyz", timeout=PROBE_SECONDS)
        except httpx.PoolTimeout:
            return  # nobody knows
        except httpx.RequestError:
            replica.state = "unreachable"
            return
        if answer.is_success:
            replica.state = "ready"
        else:
            replica.state = "failed" if FAILED in answer.content else "loading"
