"""Models that take turns in memory: who is there, who leaves for whom, and that nobody is forgotten."""

import asyncio
import gc
import random
import shutil
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from safetensors.torch import load_file, save_file

from services.engine.assembly import build_engine
from services.engine.engine import Engine
from services.engine.events import Done, Event, Output
from services.engine.generation import Generation, Run, Terms
from services.engine.slots import MAX_LATE, ModelState, Room, Slot
from services.engine.stepper import Result
from services.errors import ModelLoading, ModelUnavailable, UnknownModel
from services.image.edit import Edit
from services.image.schema import ImageJob
from services.image.service import make_stepper
from services.settings import Settings
from tests.services.conftest import LONG, Bench, Gate, MakeBench, Scripted

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", autouse=True)
def libraries_aside() -> Iterator[None]:
    """As a worker does, once: what other tests have imported is not searched whenever a model leaves."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class Shelf:
    """Models of a size each; remembers which were loaded, in order, and tells when one has been freed."""

    def __init__(self, sizes: Mapping[str, int], **options: Any) -> None:
        self.loads: list[str] = []
        self.is_freed = {name: threading.Event() for name in sizes}
        self.slots = {name: self._slot(name, size, **options.get(name, {})) for name, size in sizes.items()}

    def _slot(self, name: str, size: int, is_preloaded: bool = False, **options: Any) -> Slot:
        def make() -> Scripted:
            self.loads.append(name)
            self.is_freed[name].clear()
            model = Scripted()
            weakref.finalize(model, self.is_freed[name].set)
            return model

        return Slot(make, is_preloaded, weigh=lambda stepper: size, **options)


def states(bench: Bench, names: str) -> dict[str, ModelState]:
    return {name: bench.engine.look(name).state for name in names}


async def reach(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, LONG)


async def follow(generation: Generation) -> list[Event]:
    return [event async for event in generation]


def held(gate: Gate) -> Any:
    def script(run: Run) -> Result:
        gate()
        return Result()

    return script


def noting(name: str, order: list[str]) -> Any:
    def script(run: Run) -> Result:
        order.append(name)
        return Result()

    return script


# --- who leaves ---


async def test_the_one_that_was_used_least_recently_leaves(make_bench: MakeBench) -> None:
    shelf = Shelf(dict.fromkeys("abc", 1))
    bench = make_bench(shelf.slots, room=Room(num_models=2))
    for name in "abac":
        await bench.serve(model=name)

    assert states(bench, "abc") == {"a": "ready", "b": "cold", "c": "ready"}
    await reach(shelf.is_freed["b"])
    await bench.serve(model="b")
    assert states(bench, "abc") == {"a": "cold", "b": "ready", "c": "ready"}
    assert shelf.loads == ["a", "b", "c", "b"]


async def test_weights_stay_within_their_bytes(make_bench: MakeBench) -> None:
    shelf = Shelf({"a": 4, "b": 4, "c": 2, "d": 8})
    bench = make_bench(shelf.slots, room=Room(num_bytes=10))
    for name in "abc":
        await bench.serve(model=name)
    assert states(bench, "abcd") == {"a": "ready", "b": "ready", "c": "ready", "d": "cold"}
    await bench.serve(model="d")  # how much it takes is known only then
    for name in "abc":
        if name != "c":
            await reach(shelf.is_freed[name])

    assert states(bench, "abcd") == {"a": "cold", "b": "cold", "c": "ready", "d": "ready"}


async def test_what_is_pinned_stays(make_bench: MakeBench) -> None:
    shelf = Shelf(dict.fromkeys("abc", 1), a={"is_pinned": True})
    bench = make_bench(shelf.slots, room=Room(num_models=2))
    for name in "abcbc":
        await bench.serve(model=name)

    assert shelf.loads == ["a", "b", "c", "b", "c"]


async def test_beside_what_is_pinned_there_may_be_no_room(make_bench: MakeBench) -> None:
    shelf = Shelf(dict.fromkeys("ab", 1), a={"is_pinned": True})
    bench = make_bench(shelf.slots, room=Room(num_models=1))
    await bench.serve(model="a")

    for _ in range(2):
        with pytest.raises(ModelUnavailable, match="model 'b' has no room"):
            await bench.serve(model="b")
    assert isinstance((await bench.serve(model="a"))[-1], Done)


@pytest.mark.parametrize("options", [{}, {"expected_bytes": 11}])
async def test_a_model_that_never_fits_says_so_and_harms_nobody(make_bench: MakeBench, options: dict[str, int]) -> None:
    shelf = Shelf({"a": 5, "huge": 11}, huge=options)
    bench = make_bench(shelf.slots, room=Room(num_bytes=10))
    await bench.serve(model="a")

    with pytest.raises(ModelUnavailable, match="model 'huge' has no room: it takes 0 MB"):
        await bench.serve(model="huge")
    assert bench.engine.look("a").state == "ready"
    assert isinstance((await bench.serve(model="a"))[-1], Done)
    assert shelf.loads == ["a", "huge"][: 2 - len(options)]


async def test_a_start_loads_as_many_as_there_is_room_for(make_bench: MakeBench) -> None:
    shelf = Shelf(dict.fromkeys("abc", 1), **{name: {"is_preloaded": True} for name in "abc"})
    bench = make_bench(shelf.slots, room=Room(num_models=2))
    while bench.engine.look("c").state == "loading":
        await asyncio.to_thread(threading.Event().wait, 0.001)

    bench.engine.check_is_ready()
    assert states(bench, "abc") == {"a": "ready", "b": "ready", "c": "cold"}
    await bench.serve(model="c")
    assert shelf.loads == ["a", "b", "c"]


async def test_what_nobody_uses_leaves_after_a_time(make_bench: MakeBench) -> None:
    shelf = Shelf(dict.fromkeys("ab", 1), b={"is_pinned": True})
    bench = make_bench(shelf.slots, room=Room(idle_seconds=0.01))
    await bench.serve(model="b")
    await bench.serve(model="a")

    await reach(shelf.is_freed["a"])
    assert states(bench, "ab") == {"a": "cold", "b": "ready"}
    assert isinstance((await bench.serve(model="a"))[-1], Done)


async def test_those_that_share_a_place_are_there_one_at_a_time_and_the_others_stay(make_bench: MakeBench) -> None:
    shelf = Shelf(dict.fromkeys("abcd", 1), **{name: {"is_swapped": True} for name in "bcd"})
    bench = make_bench(shelf.slots)  # with room for all
    for name in "abcab":
        await bench.serve(model=name)
        assert sum(state == "ready" for state in states(bench, "bcd").values()) <= 1

    assert states(bench, "abcd") == {"a": "ready", "b": "ready", "c": "cold", "d": "cold"}
    await reach(shelf.is_freed["c"])
    assert shelf.loads == ["a", "b", "c", "b"]


async def test_where_room_is_short_more_leave_than_the_one_whose_place_it_is(make_bench: MakeBench) -> None:
    shelf = Shelf({"a": 4, "b": 4, "c": 8}, b={"is_swapped": True}, c={"is_swapped": True, "expected_bytes": 8})
    bench = make_bench(shelf.slots, room=Room(num_bytes=10))
    for name in "abc":
        await bench.serve(model=name)

    assert states(bench, "abc") == {"a": "cold", "b": "cold", "c": "ready"}


# --- who waits ---


async def test_a_busy_model_serves_those_who_wait_before_it_leaves(make_bench: MakeBench) -> None:
    shelf, gate, order = Shelf(dict.fromkeys("ab", 1)), Gate(), list[str]()
    bench = make_bench(shelf.slots, room=Room(num_models=1))
    running = bench.submit(held(gate), "a")
    await reach(gate.reached)
    asked = [bench.submit(noting(name, order), model) for name, model in (("b1", "b"), ("a1", "a"))]
    gate.opened.set()
    await asyncio.gather(*map(follow, (running, *asked)))

    assert order == ["a1", "b1"]
    assert shelf.loads == ["a", "b"]


async def test_who_comes_while_a_model_is_to_leave_does_not_keep_it(make_bench: MakeBench) -> None:
    shelf, order, asked = Shelf(dict.fromkeys("ab", 1)), list[str](), list[Generation]()
    bench = make_bench(shelf.slots, room=Room(num_models=1))
    loop, more = asyncio.get_running_loop(), 30

    async def ask(script: Any, model: str) -> None:
        asked.append(bench.submit(script, model))

    def again(run: Run) -> Result:  # as it runs, another one comes for the same model
        nonlocal more
        order.append("a")
        more -= 1
        if more:
            asyncio.run_coroutine_threadsafe(ask(again, "a"), loop).result(LONG)
        if more == 29:
            asyncio.run_coroutine_threadsafe(ask(noting("b", order), "b"), loop).result(LONG)
        return Result()

    await ask(again, "a")
    for generation in asked:  # which grows
        await follow(generation)

    assert order.index("b") <= 2 + MAX_LATE
    assert sorted(order) == ["a"] * 30 + ["b"]


async def test_whoever_comes_too_late_is_not_served_among_those_who_are_still(make_bench: MakeBench) -> None:
    shelf, gates, order = Shelf(dict.fromkeys("ab", 1)), (Gate(), Gate()), list[str]()
    bench = make_bench(shelf.slots, room=Room(num_models=1), queue_size=100)

    def ask(name: str, model: str, caller: str = "") -> Generation:
        return bench.engine.submit(noting(name, order), model, None, Terms(LONG, caller=caller))

    asked = [bench.submit(held(gates[0]), "a")]
    await reach(gates[0].reached)
    asked += [bench.submit(held(gates[1]), "a"), ask("b", "b")]
    gates[0].opened.set()
    await reach(gates[1].reached)  # the second is served although the model leaves
    asked += [ask("late", "a") for _ in range(MAX_LATE)]
    asked += [ask("too late", "a", caller="whose turn it would be") for _ in range(3)]
    gates[1].opened.set()
    await asyncio.gather(*map(follow, asked))

    assert order == ["late"] * MAX_LATE + ["b"] + ["too late"] * 3
    assert shelf.loads == ["a", "b", "a"]


@pytest.mark.parametrize(("swapped", "room"), [("", Room(num_models=2)), ("bcde", Room())])
async def test_nobody_waits_for_more_than_three_swaps(make_bench: MakeBench, swapped: str, room: Room) -> None:
    draw = random.Random(0)
    shelf = Shelf(dict.fromkeys("abcde", 1), **{name: {"is_swapped": True} for name in swapped})
    bench = make_bench(shelf.slots, room=room, queue_size=100)
    for name in "ab":
        await bench.serve(model=name)
    waits: list[int] = []

    async def ask(number: int) -> None:
        for _ in range(number):
            before, name = len(shelf.loads), draw.choice("abcde")

            def script(run: Run, before: int = before, name: str = name) -> Result:
                since = shelf.loads[before:]
                waits.append(since.index(name) + 1 if name in since else 0)
                return Result()

            assert isinstance((await bench.serve(script, name))[-1], Done)

    await asyncio.gather(*(ask(40) for _ in range(12)))

    assert len(waits) == 480
    assert max(waits) <= 1 + 3  # the one that was under way
    assert len(shelf.loads) < 400  # those who wait for a model share its stay


# --- what an operator says ---


async def test_an_operator_loads_and_unloads(make_bench: MakeBench) -> None:
    shelf = Shelf(dict.fromkeys("ab", 1))
    bench = make_bench(shelf.slots, room=Room(num_models=1))
    bench.engine.load("a")
    await bench.serve(model="a")
    bench.engine.unload("a")
    await reach(shelf.is_freed["a"])
    assert states(bench, "ab") == {"a": "cold", "b": "cold"}

    bench.engine.load("b")
    await bench.serve(model="b")
    assert shelf.loads == ["a", "b"]


async def test_a_model_that_is_on_its_way_may_be_told_to_leave_and_to_stay(make_bench: MakeBench) -> None:
    gates, freed = [Gate(), Gate()], threading.Event()
    coming = iter(gates)

    def make() -> Scripted:
        next(coming)()
        model = Scripted()
        weakref.finalize(model, freed.set)
        return model

    bench = make_bench({"model": Slot(make, is_preloaded=False)})
    engine = bench.engine
    engine.load("model")
    await reach(gates[0].reached)
    waiting = bench.submit()
    engine.unload("model")
    gates[0].opened.set()
    assert isinstance((await follow(waiting))[-1], Done)
    await reach(freed)
    assert engine.look("model").state == "cold"

    engine.load("model")
    await reach(gates[1].reached)
    freed.clear()
    engine.unload("model")
    engine.load("model")
    gates[1].opened.set()
    await bench.serve()
    assert (engine.look("model").state, freed.is_set()) == ("ready", False)


async def test_a_model_that_is_to_leave_comes_back_where_an_operator_says_so(make_bench: MakeBench) -> None:
    shelf, gate = Shelf({"a": 1}), Gate()
    bench = make_bench(shelf.slots)
    busy = bench.submit(held(gate), "a")
    await reach(gate.reached)
    bench.engine.unload("a")
    bench.engine.load("a")
    gate.opened.set()
    await follow(busy)
    while len(shelf.loads) < 2 or bench.engine.look("a").state != "ready":  # it is freed and back within an instant
        await asyncio.to_thread(threading.Event().wait, 0.001)

    assert shelf.loads == ["a", "a"]


async def test_a_model_that_failed_is_tried_again_when_an_operator_says_so(make_bench: MakeBench) -> None:
    outcomes = iter([OSError("no"), None])

    def make() -> Scripted:
        if (error := next(outcomes)) is not None:
            raise error
        return Scripted()

    bench = make_bench({"model": Slot(make, is_preloaded=False)})
    with pytest.raises(ModelUnavailable):
        await bench.serve()
    assert bench.engine.look("model").state == "failed"
    bench.engine.load("model")

    assert isinstance((await bench.serve())[-1], Done)


async def test_what_is_barred_stays_so(make_bench: MakeBench) -> None:
    bench = make_bench({"model": Slot(Scripted, is_preloaded=True, barred="accept the licence")})

    for attempt in (bench.engine.load, bench.engine.stepper, bench.engine.look):
        if attempt == bench.engine.look:
            assert bench.engine.look("model").failure == "accept the licence"
        else:
            with pytest.raises(ModelUnavailable, match="accept the licence"):
                attempt("model")
    with pytest.raises(ModelUnavailable, match="accept the licence"):
        bench.submit()


async def test_who_is_not_to_wait_is_told_to_come_back_and_finds_the_model(make_bench: MakeBench) -> None:
    gate = Gate()

    def make() -> Scripted:
        gate()
        return Scripted()

    slots = {"model": Slot(make, is_preloaded=False), "other": Slot(Scripted, is_preloaded=False)}
    bench = make_bench(slots, waits_for_models=False)
    for _ in range(2):
        with pytest.raises(ModelLoading, match="model 'model' is loading") as refusal:
            bench.submit()
        assert refusal.value.retry_after is not None
        await reach(gate.reached)
    assert bench.engine.look("model").state == "loading"
    gate.opened.set()
    while bench.engine.look("model").state != "ready":
        await asyncio.to_thread(threading.Event().wait, 0.001)

    assert isinstance((await bench.serve())[-1], Done)


async def test_who_asks_while_a_model_comes_does_not_bring_it_back_when_it_has_left(make_bench: MakeBench) -> None:
    shelf, gate = Shelf(dict.fromkeys("abc", 1)), Gate()
    load = shelf.slots["a"].make

    def load_slowly() -> Any:
        gate()
        return load()

    shelf.slots["a"].make = load_slowly
    bench = make_bench(shelf.slots, room=Room(num_models=1), waits_for_models=False)
    for _ in range(2):
        with pytest.raises(ModelLoading):
            bench.submit(model="a")
        await reach(gate.reached)
    gate.opened.set()
    for name in "abc":
        bench.engine.load(name)
        while bench.engine.look(name).state != "ready":
            await asyncio.to_thread(threading.Event().wait, 0.001)

    assert shelf.loads == ["a", "b", "c"]


# --- what the registry says ---


def test_a_strategy_is_what_the_registry_says(worker_settings: Settings, tmp_path: Path) -> None:
    entry = '[[models]]\nid = "{}"\ntask = "image"\n[models.tiny]\nrecipe = "image"\n[models.folder]\npath = "x"\n'
    strategies = ("preload", "on_demand", "swap")
    text = "".join(f'{entry.format(name)}strategy = "{name}"\n' for name in strategies)
    elsewhere = '[[models]]\nid = "far"\ntask = "image"\n[models.external]\nurl = "http://host:3003"\n'
    (tmp_path / "models.toml").write_text(text + elsewhere, encoding="utf-8")
    settings = worker_settings.model_copy(update={"models_file": tmp_path / "models.toml"})
    engine = build_engine("image", make_stepper, settings, CollectorRegistry())

    assert [engine.look(name).state for name in strategies] == ["loading", "cold", "cold"]  # once it is started
    with pytest.raises(UnknownModel):
        engine.look("far")


def test_a_worker_whose_models_others_serve_says_so(worker_settings: Settings, tmp_path: Path) -> None:
    entry = '[[models]]\nid = "{}"\ntask = "image"\n[models.external]\nurl = "http://host:3003"\n'
    elsewhere = "".join(entry.format(name) for name in ("shapes", "tiny-sd"))
    (tmp_path / "models.toml").write_text(elsewhere, encoding="utf-8")
    settings = worker_settings.model_copy(update={"models_file": tmp_path / "models.toml"})

    with pytest.raises(ValueError, match="others serve all those for image"):
        build_engine("image", make_stepper, settings, CollectorRegistry())


# --- five models of a worker, and room for two ---

MODELS = ("tiny-sd", "second", "third", "fourth", "fifth")
PROMPTS = ("a lighthouse", "two cats", "rain")


@pytest.fixture(scope="module")
def gallery(worker_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Five models of one architecture, each with weights of its own; without the one that was trained."""
    root = tmp_path_factory.mktemp("gallery")
    entries = ['[[models]]\nid = "shapes"\ntask = "image"\nprofile = "hub"\nfolder = { path = "nowhere" }\n']
    for number, name in enumerate(MODELS, start=1):
        shutil.copytree(worker_settings.data_dir / "tiny" / "image", root / name)
        [file] = (root / name / "unet").glob("*.safetensors")
        weights = {key: tensor * (1 - 0.1 * number) for key, tensor in load_file(file).items()}
        save_file(weights, file, metadata={"format": "pt"})
        entries.append(f'[[models]]\nid = "{name}"\ntask = "image"\n[models.folder]\npath = "{name}"\n')
    (root / "models.toml").write_text("\n".join(entries), encoding="utf-8")
    return worker_settings.model_copy(update={"models_file": root / "models.toml"})


def drawing(prompt: str, model: str, seed: int) -> Edit:
    sizes: dict[str, Any] = {"size": "64x64", "num_inference_steps": 3, "guidance_scale": 5.0}
    return Edit(ImageJob.model_validate({"prompt": prompt, "model": model, "seed": seed, **sizes}))


async def draw(engine: Engine, model: str, seed: int) -> NDArray[np.uint8]:
    """Draw, and wait where the model is on its way."""
    work = drawing(PROMPTS[seed % len(PROMPTS)], model, seed)
    made: Sequence[NDArray[np.uint8]] = [
        event.data async for event in engine.submit(work, model, seed, Terms(LONG)) if isinstance(event, Output)
    ]
    return made[0]


async def ready(engine: Engine) -> None:
    while any(engine.look(model).state == "loading" for model in MODELS):
        await asyncio.to_thread(threading.Event().wait, 0.001)


async def test_five_models_with_room_for_two_draw_what_each_draws_alone(gallery: Settings) -> None:
    alone = build_engine("image", make_stepper, gallery, CollectorRegistry())
    alone.start()
    await ready(alone)
    takes = alone.look("second").num_bytes
    assert takes is not None
    budget = 2.1 * takes
    room = gallery.model_copy(update={"max_models": 2, "max_models_mb": budget / 1e6})
    shared = build_engine("image", make_stepper, room, CollectorRegistry())
    shared.start()
    await ready(shared)
    traffic = [(random.Random(0).choices(MODELS, k=24)[place], place) for place in range(24)]
    most = 0

    async def ask(model: str, seed: int) -> NDArray[np.uint8]:
        nonlocal most
        picture = await draw(shared, model, seed)
        looks = [shared.look(each) for each in MODELS]
        most = max(most, sum(look.num_bytes or 0 for look in looks if look.state == "ready"))
        return picture

    try:
        expected = [await draw(alone, model, seed) for model, seed in traffic]
        made = await asyncio.gather(*(ask(model, seed) for model, seed in traffic))
    finally:
        alone.close()
        shared.close()

    assert len({picture.tobytes() for picture in expected}) == len(traffic)
    for picture, other in zip(made, expected, strict=True):
        assert np.abs(picture.astype(int) - other.astype(int)).max() <= 2
    assert takes <= most <= 1.1 * budget
    assert torch.get_default_dtype() == torch.float32
