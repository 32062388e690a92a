"""Which workers and providers serve a model, and which workers are well right now."""

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, Self

import httpx
from pydantic import BaseModel, ValidationError

from gateway.balance import Replica, Replicas, State
from gateway.errand import Absent
from gateway.errors import NoProvider, NotServed, UnknownModel, WorkerUnreachable
from gateway.names import PREFIX, Names
from gateway.providers import Provider
from gateway.refusals import workers_refusal
from services.registry import Model, Task

PROBE_SECONDS = 2.0
ASK_SECONDS = 5.0
AGAIN_SECONDS = 0.3  # for one that did not answer the last look: callers shall not wait for it again
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


class Progress(BaseModel):
    """How far a model is on its way into memory: fetched from the hub, built, or read from the disk."""

    phase: str
    num_bytes: int | None = None
    total_bytes: int | None = None


class Seen(BaseModel):
    """How a model is.

    Args:
        failure: why it is not in memory, in a sentence.
        num_bytes: of its weights; None: it has not been in memory yet.
        progress: of one that is loading; None: it waits for its turn.
        num_waiting: requests in the queues of its workers; None: nobody knows.
        num_active: requests in progress.
        batch_size: how many of those shared the latest forward, of one worker at most.
    """

    state: ModelState
    failure: str | None = None
    num_bytes: int | None = None
    progress: Progress | None = None
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


UNKNOWN_THERE = Seen(state="failed", failure="the worker that is to serve it does not know this model")


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


def fixed(urls: Sequence[str]) -> list[str]:
    """Those that are no names."""
    return [url for url in urls if not url.startswith(PREFIX)]


def has_names(urls: Sequence[str]) -> bool:
    """Whether some are."""
    return len(fixed(urls)) < len(urls)


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
            workers: base URLs of replicas; or names, each of which stands for any number of them.
            models: what our workers serve, or workers elsewhere that their entries name.
            providers: an id that our workers serve as well is theirs.
            fallbacks: of models of ours.
            outside: id of the provider's model that is asked where nobody names one.
            http: to ask workers for their health with.
            interval: how often, in seconds.
        """
        local = {model.task for model in models if not model.is_external}
        self._workers = {task: Replicas(fixed(urls)) for task, urls in workers.items() if task in local}
        self._names = Names()
        self._named = {self._workers[task]: workers[task] for task in self._workers if has_names(workers[task])}
        elsewhere = {model.id: model.external.url.rstrip("/") for model in models if model.external is not None}
        places = {url: Replicas([url]) for url in elsewhere.values()}  # several models may be at one
        self._elsewhere = {model: places[url] for model, url in elsewhere.items()}
        self._tasks = {model.id: model.task for model in models}
        self._outside = outside
        self._providers = {provider.id: provider for provider in providers}
        self.created = int(time.time())
        self._fallbacks = {**{provider.id: provider.fallbacks for provider in providers}, **fallbacks}
        self._http = http
        self._interval = interval
        self._chance = random.Random()
        self._look: asyncio.Task[None] | None = None

    def worker(self, task: Task, model: str | None = None) -> tuple[Target, ...]:
        """The worker for `task` that has `model`, or else the default.

        Raises:
            NotServed: the operator has configured none.
        """
        return (self._first(task, model),)

    def _first(self, task: Task, model: str | None) -> Ours:
        """Who is asked for a model of ours; the body names it, unless that is another worker's."""
        asked_for = model if model is not None else self._default(task)
        return self._ours(task, asked_for if asked_for in self._elsewhere else None)

    def _default(self, task: Task) -> str:
        return next((model for model, of in self._tasks.items() if of == task), "")

    def _ours(self, task: Task, model: str | None = None) -> Ours:
        if model in self._elsewhere:
            return Ours(self._elsewhere[model], model)
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
            return (self._first(task, model), *self._instead(task, model or self._default(task)))
        provider = self._providers.get(model)
        if provider is None or provider.task != task:
            served = ", ".join(self.models(task))
            raise UnknownModel(f"model '{model[:200]}' is not served here; choose one of: {served}")
        return (provider, *self._instead(task, model))

    def _instead(self, task: Task, model: str) -> tuple[Target, ...]:
        return tuple(
            self._ours(task, other) if other in self._tasks else self._providers[other]
            for other in self._fallbacks.get(model, ())
            if other in self._providers or other in self._elsewhere or task in self._workers
        )

    def models(self, task: Task) -> list[str]:
        """The ids of all models for `task`."""
        ours = [
            model
            for model, of in self._tasks.items()
            if of == task and (task in self._workers or model in self._elsewhere)
        ]
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

    async def ask(self, task: Task, model: str | None, path: str, /, **query: str) -> bytes:
        """Return what the worker for `task` that has `model` says under `path`, which costs it next to nothing.

        Raises:
            NotServed: the operator has configured none.
            WorkerUnreachable: none answers.
            WorkerRefused: the one that does says anything but a success.
        """
        for replica in self._ours(task, model).replicas.in_order():
            question = self._http.build_request("GET", f"{replica.url}{path}", params=query, timeout=ASK_SECONDS)
            with suppress(httpx.RequestError, Absent):
                answer = await self._http.send(question, stream=True)
                if not answer.is_success:
                    raise await workers_refusal(answer, {})
                try:
                    return await answer.aread()
                finally:
                    await answer.aclose()
        raise WorkerUnreachable("the worker for this does not answer; it may be starting")

    async def tell(self, task: Task, model: str, path: str, headers: Mapping[str, str]) -> None:
        """Post to all workers for `task` that have `model` and answer.

        Raises:
            NotServed: the operator has configured none.
            WorkerUnreachable: none answers.
            WorkerRefused: one says anything but a success.
        """
        has_answered = False
        for replica in self._ours(task, model).replicas.all:
            url = f"{replica.url}{path}"
            order = self._http.build_request("POST", url, json={}, headers=headers, timeout=ASK_SECONDS)
            with suppress(httpx.RequestError, Absent):
                answer = await self._http.send(order, stream=True)
                try:
                    if not answer.is_success:
                        raise await workers_refusal(answer, {})
                finally:
                    await answer.aclose()
                has_answered = True
        if not has_answered:
            raise WorkerUnreachable("the worker for this does not answer; it may be starting")

    async def states(self, tasks: Collection[Task]) -> dict[str, Seen]:
        """How our models for `tasks` are, by id; each worker is asked once."""
        places: dict[Replicas, list[str]] = defaultdict(list)
        for model, task in self._tasks.items():
            place = self._elsewhere.get(model, self._workers.get(task))
            if task in tasks and place is not None:
                places[place].append(model)
        found = await asyncio.gather(*(self._states_at(place, models) for place, models in places.items()))
        return {model: state for states in found for model, state in states.items()}

    async def _states_at(self, place: Replicas, models: Sequence[str]) -> dict[str, Seen]:
        told: dict[str, Seen] = {}
        answers = await asyncio.gather(*map(self._listed, place.in_order()))
        for listed in reversed(answers):  # the first one's word counts
            told |= {each.id: each.beside(told[each.id]) if each.id in told else each for each in listed or ()}
        others = UNKNOWN_THERE if any(listed is not None for listed in answers) else Seen(state="unreachable")
        return {model: told.get(model, others) for model in models}

    async def _listed(self, replica: Replica) -> list[ListedModel] | None:
        """What a replica says of its models; None: it does not answer."""
        patience = AGAIN_SECONDS if replica.state == "unreachable" else ASK_SECONDS
        try:
            answer = await self._http.get(f"{replica.url}/v1/models", timeout=patience)
            return Listed.model_validate_json(answer.content).data if answer.is_success else None
        except (httpx.RequestError, ValidationError):
            return None

    async def health(self) -> dict[Task, Health]:
        """Ask all replicas at once; who asks meanwhile hears what comes of it too."""
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(self._look_at_all())
        await asyncio.shield(self._look)
        return {task: Health(worker.state, worker.num_ready, len(worker.all)) for task, worker in self._workers.items()}

    async def _look_at_all(self) -> None:
        await asyncio.gather(*map(self._look_at_place, {*self._workers.values(), *self._elsewhere.values()}))

    async def _look_at_place(self, place: Replicas) -> None:
        """Look at those that are there by now; who is new takes no request before it has been looked at."""
        urls = self._named.get(place)
        there = place.all if urls is None else place.at(await self._names.urls(urls))
        await asyncio.gather(*map(self._look_at, there))
        place.all = there

    async def __aenter__(self) -> Self:
        """Look at all replicas again and again; the first time, where there are names, before any request."""
        if self._named:
            await self.health()
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *error: object) -> None:
        """Look no more."""
        tasks = [self._watching, *([self._look] if self._look is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        self._names.close()

    async def _watch(self) -> None:
        while True:
            await self.health()
            await asyncio.sleep(self._interval * self._chance.uniform(*JITTER))

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
