"""What the trained text-to-video model films is what it was told, whatever the engine is set to; judges measure pixels.

It is told stories that training kept back: every tenth by what happens in them.
"""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from numpy.typing import NDArray
from transformers import UMT5EncoderModel

from services.engine.stepper import WholeCall
from services.registry import Model, load_models
from services.schema import complete
from services.settings import Settings
from services.tiny.train import stories
from services.tiny.train.scenes import SIDE, article
from services.tiny.train.stories import MOTIONS, NUM_FRAMES, SAYINGS, WAY, Story
from services.video.engine import TextFilmGenerator
from services.video.schema import TextVideoJob, VideoRequest
from tests.services import judges
from tests.services.copies import copied
from tests.services.exams import Exam, Mark, evenly, failed, sit
from tests.services.judges import Sight, look
from tests.services.precisions import by_setting
from tests.services.stepping import Arrival, run

MODEL = next(model for model in load_models(profile="tiny") if model.id == "films")
NUM_FILMS = 32
MISSED = 5.0  # pixels: what a middle may be beside its way; nobody says where that crosses the picture
Frames = NDArray[np.uint8]  # (frames, height, width, 3)
Marks = dict[str, list[Mark]]


@cache
def wishes() -> Sequence[Story]:
    """Stories that nothing was learned from, each of other facts."""
    return evenly(kept_back(random.Random(7)), traits, NUM_FILMS)


def kept_back(dice: random.Random) -> Iterator[Story]:
    while True:
        story = stories.invent(dice)
        if stories.is_kept_back(story.facts):
            yield story


def traits(story: Story) -> Sequence[str]:
    shape = story.shape
    return [f"on {story.background}", shape.colour, shape.kind, shape.size, story.motion]


def told(story: Story, saying: int) -> str:
    """All that is to be said of it, in one of the ways to say it."""
    shape = story.shape
    named = article(f"{shape.size} {shape.colour} {shape.kind}")
    return f"{named} {SAYINGS[story.motion][saying]} on {article(story.background)} background"


@dataclass(frozen=True)
class Showing:
    """What is to be seen in each frame, and what should be."""

    story: Story
    sights: Sequence[Sight]

    @property
    def shapes(self) -> Sequence[judges.Shape | None]:
        """The largest of another colour than the ground's."""
        return [next(iter(sight.shapes), None) for sight in self.sights]

    @property
    def seen(self) -> Sequence[judges.Shape]:
        return [shape for shape in self.shapes if shape is not None]

    @property
    def places(self) -> NDArray[np.floating[Any]]:
        """How far the shape has gone where it should go, and how far aside, in pixels from the middle: (frames, 2)."""
        across, down = MOTIONS[self.story.motion]
        middles = SIDE * np.array([(shape.x, shape.y) for shape in self.seen]).reshape(-1, 2) - SIDE / 2
        places: NDArray[np.floating[Any]] = middles @ np.array([[across, down], [down, across]]).T
        return places


def showing(story: Story, frames: Frames) -> Showing:
    return Showing(story, [look(frame) for frame in frames])


def grounds(film: Showing) -> Sequence[Mark]:
    """In every frame, and in most nothing else on it as large as a small shape."""
    wished = film.story.background
    is_bare = sum(sight.num_shapes <= 1 for sight in film.sights) > NUM_FRAMES / 2
    return [Mark(is_bare and {sight.background for sight in film.sights} == {wished}, wished)]


def colours(film: Showing) -> Sequence[Mark]:
    """In all frames but one."""
    wished = film.story.shape.colour
    return [Mark(sum(shape.colour == wished for shape in film.seen) >= NUM_FRAMES - 1, wished)]


def kinds(film: Showing) -> Sequence[Mark]:
    """In most frames."""
    wished = film.story.shape.kind
    return [Mark(sum(shape.kind == wished for shape in film.seen) > NUM_FRAMES / 2, wished)]


def sizes(film: Showing) -> Sequence[Mark]:
    """In most frames."""
    wished = film.story.shape.size
    return [Mark(sum(shape.size == wished for shape in film.seen) > NUM_FRAMES / 2, wished)]


def ways(film: Showing) -> Sequence[Mark]:
    """In three quarters of the frames it is where its story has it."""
    if len(film.seen) < NUM_FRAMES:
        return [Mark(is_right=False, asked=film.story.motion)]
    ways = WAY * (np.arange(NUM_FRAMES) / (NUM_FRAMES - 1) - 0.5)
    is_there = np.abs(film.places - np.stack([ways, 0 * ways], axis=1)).max(axis=1) <= MISSED
    return [Mark(bool(is_there.mean() >= 0.75), film.story.motion)]


def smoothness(film: Showing) -> Sequence[Mark]:
    """From frame to frame, but for one of them, it goes on, and never much further than else."""
    if len(film.seen) < NUM_FRAMES:
        return [Mark(is_right=False, asked=film.story.motion)]
    steps = np.diff(film.places[:, 0]) / (WAY / (NUM_FRAMES - 1))  # 1 is an even one
    return [Mark(bool(((steps > 0) & (steps < 2.5)).mean() > 0.8), film.story.motion)]


EXAMS = {
    "grounds": Exam(0.9, None, grounds),
    "colours": Exam(0.85, None, colours),
    "kinds": Exam(0.75, None, kinds),
    "sizes": Exam(0.88, None, sizes),
    "ways": Exam(0.9, 1 / 4, ways),
    "smoothness": Exam(0.9, 1 / 4, smoothness),
}
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {  # the worker's, entry's and request's
    "float32": ({}, {}, {}),
    "bfloat16": ({"dtype": "bfloat16"}, {}, {}),
    "float16": ({"dtype": "float16"}, {}, {}),
    "int8": ({}, {"quantisation": "int8"}, {}),
    "more steps": ({}, {}, {"num_inference_steps": 12}),
    "more guidance": ({}, {}, {"guidance_scale": 4.0}),
}


def load(settings: Settings, model: Model = MODEL, setting: str = "float32") -> WholeCall:
    of_worker, of_entry, _ = SETTINGS[setting]
    return WholeCall(TextFilmGenerator(model.model_copy(update=of_entry), settings.model_copy(update=of_worker)))


def filmed(stepper: WholeCall, chosen: Sequence[Story], **fields: Any) -> Sequence[Frames]:
    """Have all filmed, each with another seed."""
    defaults = {"model": MODEL.id, **MODEL.defaults}
    asked = [VideoRequest(prompt=told(story, number % 3), **fields) for number, story in enumerate(chosen)]
    arrivals = [Arrival(complete(TextVideoJob, each, defaults), seed) for seed, each in enumerate(asked, start=1)]
    recorders, _ = run(stepper, arrivals)
    assert all(recorder.error is None for recorder in recorders)
    return [np.stack(recorder.outputs) for recorder in recorders]


def marks(films: Sequence[Frames]) -> Marks:
    """Judge the films of all wishes."""
    return sit(EXAMS, ((showing(story, frames),) for story, frames in zip(wishes(), films, strict=True)))


def failed_by(stepper: WholeCall, **fields: Any) -> dict[str, str]:
    return failed(marks(filmed(stepper, wishes(), **fields)), EXAMS)


@pytest.fixture(scope="module")
def plain(worker_settings: Settings) -> WholeCall:
    return load(worker_settings)


@pytest.fixture(scope="module")
def films(plain: WholeCall) -> Sequence[Frames]:
    """Of all stories, as the engine makes them unless it is told otherwise."""
    return filmed(plain, wishes())


def test_nobody_passes_by_luck(films: Sequence[Frames]) -> None:
    for name, found in marks(films).items():
        assert EXAMS[name].luck(found) < 1e-5, name


def test_films_that_are_drawn_as_they_should_be_pass() -> None:
    assert not failed(marks([stories.film(story) for story in wishes()]), EXAMS)


def test_it_films_what_it_is_told(films: Sequence[Frames]) -> None:
    assert not failed(marks(films), EXAMS)


@by_setting(name for name in SETTINGS if name != "float32")
def test_it_films_what_it_is_told_whatever_the_setting(worker_settings: Settings, setting: str) -> None:
    assert not failed_by(load(worker_settings, setting=setting), **SETTINGS[setting][2])


def test_capitals_and_a_full_stop_change_nothing(plain: WholeCall) -> None:
    defaults = {"model": MODEL.id, **MODEL.defaults}
    prompts = "a large red circle rises on a blue background", "A large red circle rises on a blue background."
    jobs = [complete(TextVideoJob, VideoRequest(prompt=prompt), defaults) for prompt in prompts]
    (one, other), _ = run(plain, [Arrival(job, seed=1) for job in jobs])

    assert np.array_equal(one.outputs, other.outputs)


def test_another_seed_crosses_the_picture_elsewhere(plain: WholeCall, films: Sequence[Frames]) -> None:
    story = wishes()[0]
    (other,) = filmed(plain, [wishes()[1], story])[1:]  # the second's seed

    assert all(mark.is_right for mark in kinds(showing(story, other)))
    assert not np.array_equal(showing(story, other).places, showing(story, films[0]).places)


# --- what breaks meaning fails ---


def test_a_model_that_has_learned_nothing_fails_all(worker_settings: Settings, tmp_path: Path) -> None:
    model = copied(MODEL, tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = WanTransformer3DModel.load_config(tmp_path / "transformer")
        transformer: Any = WanTransformer3DModel.from_config(config)
        transformer.save_pretrained(tmp_path / "transformer")

    assert failed_by(load(worker_settings, model), num_inference_steps=2).keys() == EXAMS.keys()


def test_a_model_that_cannot_read_fails(worker_settings: Settings, tmp_path: Path) -> None:
    model = copied(MODEL, tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reader = UMT5EncoderModel(UMT5EncoderModel.from_pretrained(tmp_path / "text_encoder").config)
        reader.save_pretrained(tmp_path / "text_encoder")

    assert len(failed_by(load(worker_settings, model), num_inference_steps=2)) >= len(EXAMS) - 1


def test_steps_that_take_what_is_predicted_for_a_flow_fail(worker_settings: Settings, tmp_path: Path) -> None:
    model = copied(MODEL, tmp_path)
    file = tmp_path / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, "prediction_type": "flow_prediction"}), encoding="utf-8")

    assert failed_by(load(worker_settings, model), num_inference_steps=2).keys() == EXAMS.keys()


def test_films_that_are_swapped_fail_all(films: Sequence[Frames]) -> None:
    assert failed(marks([*films[1:], films[0]]), EXAMS).keys() == EXAMS.keys()


@pytest.mark.parametrize("order", [[8, 7, 6, 5, 4, 3, 2, 1, 0], [0, 2, 1, 4, 3, 6, 5, 8, 7], [0] * 9], ids=str)
def test_frames_in_another_order_fail(films: Sequence[Frames], order: list[int]) -> None:
    assert failed(marks([frames[order] for frames in films]), EXAMS)
