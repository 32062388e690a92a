"""What the trained image-to-video model films moves as it should, whatever the engine is set to; judges measure pixels.

It is shown pictures that training did not have. Everything has to drift to the right, by `motion_bucket_id` so far.
"""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from numpy.typing import NDArray
from PIL import Image

from services.registry import Model, load_models
from services.schema import complete
from services.settings import Settings
from services.tiny.train import motion
from services.tiny.train.scenes import REACH, SIDE, Scene, draw, imagine
from services.video.engine import FilmStepper, Phase
from services.video.schema import VideoJob, VideoRequest
from tests.services import judges
from tests.services.copies import copied
from tests.services.exams import Exam, Mark, evenly, failed, sit
from tests.services.judges import Sight, look
from tests.services.precisions import by_setting
from tests.services.stepping import Arrival, Recorder, run

MODEL = next(model for model in load_models(profile="tiny") if model.id == "moves")
NUM_FILMS = 12  # of one shape and of two in turn
BUCKETS = (85, 170, 255)  # what the films are asked for with, in turn: by each everything moves 5 pixels further
MISSED = 2.5  # pixels: what a shape's middle may be beside its place at first
STRAYED = 1.5  # pixels: and later; with more, one way in the middle of all three would do for two of them
Frames = NDArray[np.uint8]  # (frames, height, width, 3)
Marks = dict[str, list[Mark]]
Track = Sequence[judges.Shape]  # a shape's patch in each frame


@dataclass(frozen=True)
class Wish:
    """A first frame, and how much is to move."""

    scene: Scene
    bucket: int

    def film(self) -> Frames:
        """The film that was wished for, drawn by numbers and not by the model."""
        return motion.film(self.scene, self.bucket)


@cache
def wishes() -> Sequence[Wish]:
    """Pictures of one shape and of two in turn."""
    dice = random.Random(7)
    lone, pairs = (evenly(roomy(dice, num_shapes), traits, NUM_FILMS // 2) for num_shapes in (1, 2))
    drawn = [scene for both in zip(lone, pairs, strict=True) for scene in both]
    return [Wish(scene, BUCKETS[number // 2 % len(BUCKETS)]) for number, scene in enumerate(drawn)]


def roomy(dice: random.Random, num_shapes: int) -> Iterator[Scene]:
    while True:
        scene = imagine(dice)
        if len(scene.shapes) == num_shapes and has_room(scene):
            yield scene


def traits(scene: Scene) -> Sequence[str]:
    shapes = [trait for shape in scene.shapes for trait in (shape.colour, shape.kind, shape.size)]
    return [f"on {scene.background}", *shapes]


def has_room(scene: Scene) -> bool:
    """Whether nothing leaves the picture."""
    return all(shape.x + REACH * shape.radius + motion.MOST_WAY <= SIDE for shape in scene.shapes)


@dataclass(frozen=True)
class Showing:
    """What is to be seen in each frame, and what should be."""

    frames: Sequence[Sight]
    wished: Sequence[Sight]

    def judged(self, judge: Callable[[Track, Track], bool]) -> Sequence[Mark]:
        """Have each shape judged, frame by frame beside what was wished for."""
        return [Mark(self._is_right(judge, shape.colour), shape.kind) for shape in self.wished[0].shapes]

    def _is_right(self, judge: Callable[[Track, Track], bool], colour: str) -> bool:
        made, wished = ([patch(sight, colour) for sight in sights] for sights in (self.frames, self.wished))
        assert all(wished)
        return all(made) and judge(*([shape for shape in track if shape is not None] for track in (made, wished)))


def patch(sight: Sight, colour: str) -> judges.Shape | None:
    return next((seen for seen in sight.shapes if seen.colour == colour), None)


def apart(one: judges.Shape, other: judges.Shape) -> float:
    """How many pixels are between the middles."""
    return SIDE * float(np.hypot(other.x - one.x, other.y - one.y))


def part(marks: Iterable[bool]) -> float:
    """How many of them are right, of 1."""
    return float(np.mean(list(marks)))


def beginnings(film: Showing) -> Sequence[Mark]:
    """Whether the first frame has each shape where the picture has it."""
    return film.judged(lambda made, wished: apart(made[0], wished[0]) <= MISSED)


def paths(film: Showing) -> Sequence[Mark]:
    """Whether three quarters of the frames have the shape where it was to be."""

    def is_followed(made: Track, wished: Track) -> bool:
        return part(apart(shape, other) <= STRAYED for shape, other in zip(made, wished, strict=True)) >= 0.75

    return film.judged(is_followed)


def smoothness(film: Showing) -> Sequence[Mark]:
    """Whether from frame to frame, but for one of them, the shape goes on, and never much further than else."""

    def is_smooth(made: Track, wished: Track) -> bool:
        middles = np.array([(shape.x, shape.y) for shape in made])
        whole = middles[-2] - middles[0]
        steps = np.diff(middles, axis=0) @ whole / max(whole @ whole, 1e-9) * (len(made) - 2)  # 1 is an even one
        return part(0 < step < 2.5 for step in steps) > 0.8

    return film.judged(is_smooth)


def kinds(film: Showing) -> Sequence[Mark]:
    """Whether the shape is of its kind in most of the frames."""
    return film.judged(lambda made, wished: part(shape.kind == wished[0].kind for shape in made) > 0.5)


def sizes(film: Showing) -> Sequence[Mark]:
    """Whether the shape has its area, give or take a third, in three quarters of the frames."""

    def is_kept(made: Track, wished: Track) -> bool:
        return part(2 / 3 < shape.num_pixels / wished[0].num_pixels < 4 / 3 for shape in made) >= 0.75

    return film.judged(is_kept)


def grounds(film: Showing) -> Sequence[Mark]:
    """Whether the ground has its colour in every frame, and in most of them nothing else on it as large as a shape."""
    ground, num_shapes = film.wished[0].background, len(film.wished[0].shapes)
    is_bare = part(sight.num_shapes <= num_shapes for sight in film.frames) > 0.5
    return [Mark(is_bare and all(sight.background == ground for sight in film.frames), ground)]


EXAMS = {
    "beginnings": Exam(0.85, 1 / 6, beginnings),
    "paths": Exam(0.9, 1 / 3, paths),
    "smoothness": Exam(0.8, 1 / 6, smoothness),
    "kinds": Exam(0.9, None, kinds),
    "sizes": Exam(0.9, 1 / 3, sizes),
    "grounds": Exam(0.9, None, grounds),
}
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {  # the worker's, entry's and request's
    "float32": ({}, {}, {}),
    "bfloat16": ({"dtype": "bfloat16"}, {}, {}),
    "float16": ({"dtype": "float16"}, {}, {}),
    "int8": ({}, {"quantisation": "int8"}, {}),
    "more steps": ({}, {}, {"num_inference_steps": 16}),
}


def load(settings: Settings, model: Model = MODEL, setting: str = "float32") -> FilmStepper:
    of_worker, of_entry, _ = SETTINGS[setting]
    return FilmStepper(model.model_copy(update=of_entry), settings.model_copy(update=of_worker))


def job(decode_chunk_size: int = MODEL.defaults["decode_chunk_size"], **fields: Any) -> VideoJob:
    defaults = {"model": MODEL.id, **MODEL.defaults, "decode_chunk_size": decode_chunk_size}
    return complete(VideoJob, VideoRequest(**fields), defaults)


def filmed(stepper: FilmStepper, chosen: Sequence[Wish], most: int = 4, **fields: Any) -> Sequence[Frames]:
    """Have all filmed; at every second tick somebody else joins a batch that others leave."""
    arrivals = [
        Arrival(
            (job(motion_bucket_id=wish.bucket, **fields), Image.fromarray(draw(wish.scene))),
            seed=number,
            tick=2 * number,
        )
        for number, wish in enumerate(chosen)
    ]
    made, _ = run(stepper, arrivals, most)
    return [frames_of(each) for each in made]


def frames_of(made: Recorder) -> Frames:
    assert made.error is None
    return np.stack(made.outputs)


def marks(films: Sequence[Frames]) -> Marks:
    """Judge the films of all wishes."""
    pairs = zip(films, (wish.film() for wish in wishes()), strict=True)
    return sit(EXAMS, ((Showing(*([look(frame) for frame in film] for film in pair)),) for pair in pairs))


def failed_by(stepper: FilmStepper, **fields: Any) -> dict[str, str]:
    return failed(marks(filmed(stepper, wishes(), **fields)), EXAMS)


@pytest.fixture(scope="module")
def plain(worker_settings: Settings) -> FilmStepper:
    return load(worker_settings)


@pytest.fixture(scope="module")
def films(plain: FilmStepper) -> Sequence[Frames]:
    """Of all scenes, as the engine makes them unless it is told otherwise."""
    return filmed(plain, wishes())


def test_nobody_passes_by_luck(films: Sequence[Frames]) -> None:
    for name, found in marks(films).items():
        assert EXAMS[name].luck(found) < 1e-5, name


def test_films_that_are_drawn_as_they_should_be_pass() -> None:
    assert not failed(marks([wish.film() for wish in wishes()]), EXAMS)


def test_it_films_what_moves(films: Sequence[Frames]) -> None:
    assert not failed(marks(films), EXAMS)


@by_setting(name for name in SETTINGS if name != "float32")
def test_it_films_what_moves_whatever_the_setting(worker_settings: Settings, setting: str) -> None:
    assert not failed_by(load(worker_settings, setting=setting), **SETTINGS[setting][2])


def test_in_company_it_films_what_it_films_alone(plain: FilmStepper, films: Sequence[Frames]) -> None:
    alone = filmed(plain, wishes()[:3], most=1)

    assert np.abs(np.array(films[:3], int) - np.array(alone, int)).max() <= 2


def test_frames_are_the_same_however_many_are_decoded_at_once(plain: FilmStepper, films: Sequence[Frames]) -> None:
    for num_frames in (1, 3):
        pieces = filmed(plain, wishes()[:2], decode_chunk_size=num_frames)
        assert np.abs(np.array(films[:2], int) - np.array(pieces, int)).max() <= 2


def test_shapes_go_as_far_whatever_the_frame_rate(plain: FilmStepper) -> None:
    assert not failed_by(plain, fps=25)


# --- what breaks meaning fails ---


def test_a_model_that_has_learned_nothing_fails_all(worker_settings: Settings, tmp_path: Path) -> None:
    model = copied(MODEL, tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet: Any = UNetSpatioTemporalConditionModel.from_config(
            UNetSpatioTemporalConditionModel.load_config(tmp_path / "unet")
        )
        unet.save_pretrained(tmp_path / "unet")

    assert len(failed_by(load(worker_settings, model))) == len(EXAMS)


def test_steps_that_take_what_is_predicted_for_noise_fail(worker_settings: Settings, tmp_path: Path) -> None:
    model = copied(MODEL, tmp_path)
    file = tmp_path / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, "prediction_type": "epsilon"}), encoding="utf-8")

    assert len(failed_by(load(worker_settings, model))) == len(EXAMS)


def test_films_that_are_swapped_fail(worker_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    stepper = load(worker_settings)
    forward = stepper.forward

    def swapped(states: Sequence[Any]) -> Sequence[Any]:
        first, *others = forward(states)
        return [*others, first] if states[0].phase is Phase.DENOISE else [first, *others]

    monkeypatch.setattr(stepper, "forward", swapped)

    assert len(failed_by(stepper)) == len(EXAMS)


@pytest.mark.parametrize("order", [[7, 6, 5, 4, 3, 2, 1, 0], [0, 2, 1, 4, 3, 6, 5, 7], [0] * 8], ids=str)
def test_frames_in_another_order_fail(films: Sequence[Frames], order: list[int]) -> None:
    assert failed(marks([frames[order] for frames in films]), EXAMS)
