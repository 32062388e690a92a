"""Films by the step on the tiny checkpoints: they are the library's own, whoever else is served beside."""

import itertools
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import ValidationError

from services.engine.checkpoints import Unfit
from services.engine.events import Done, Output, Preview, Progress
from services.engine.generation import Generation, Run, Terms
from services.engine.slots import Slot
from services.engine.stepper import Result, Stepper, WholeCall
from services.engine.weights import load_pipeline
from services.errors import Cancelled, GenerationFailed, InvalidRequest
from services.registry import Model, load_models
from services.schema import check_is_text, complete, parse_size
from services.settings import Settings
from services.tiny.train import storyteller
from services.video.engine import Film, FilmStepper, Phase, TextFilmGenerator
from services.video.schema import TextVideoJob, VideoJob, VideoRequest
from services.video.service import make_stepper
from tests.services.conftest import MakeBench
from tests.services.stepping import Arrival, Recorder, alone, run

MODELS = {model.id: model for model in load_models(profile="hub") if model.task == "video"}
PICTURE_MODEL = "stable-video-diffusion-img2vid"
TEXT_MODEL = "wan2.1-t2v-1.3b"
PICTURE = Image.linear_gradient("L").resize((96, 64)).convert("RGB")
POISONED, BROKEN = 13, 14  # seeds of requests that fail
TOLERANCE = 2  # of 255


class Boom(Exception):
    """Something that nobody foresaw."""


class Watched(FilmStepper):
    """Keeps what it works on, notes who was advanced in which phase, and does ill to two seeds."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.forget()

    def forget(self) -> None:
        self.films: list[Film] = []
        self.advanced: list[tuple[int, Phase, int]] = []  # seed, phase, frames emitted so far

    def admit(self, request: tuple[VideoJob, Image.Image], seed: int, run: Run) -> Film:
        film = super().admit(request, seed, run)
        if seed == POISONED:
            film.guidance.fill_(torch.nan)
        self.films.append(film)
        return film

    def forward(self, states: Sequence[Film]) -> Sequence[Any]:
        if any(film.seed == BROKEN and film.phase is Phase.DENOISE and film.step for film in states):
            raise Boom
        return super().forward(states)

    def advance(self, state: Film, row: Any) -> Result | None:
        phase = state.phase
        try:
            return super().advance(state, row)
        finally:
            assert isinstance(state.run, Recorder | Generation)
            if isinstance(state.run, Recorder):
                self.advanced.append((state.seed, phase, len(state.run.outputs)))


@pytest.fixture(scope="module")
def loaded(worker_settings: Settings) -> Watched:
    return Watched(MODELS[PICTURE_MODEL], worker_settings)


@pytest.fixture
def stepper(loaded: Watched) -> Watched:
    loaded.forget()
    return loaded


class Library:
    """The library's own films, each made once."""

    def __init__(self, settings: Settings) -> None:
        self._pipeline = load_pipeline(MODELS[PICTURE_MODEL], settings)
        self.latents = cache(self._latents)
        self.frames = cache(self._frames)

    def _latents(self, job: VideoJob, seed: int) -> torch.Tensor:
        latents: torch.Tensor = self._call(job, seed, "latent")[0]
        return latents

    def _frames(self, job: VideoJob, seed: int) -> NDArray[np.int64]:
        return np.stack([np.asarray(frame) for frame in self._call(job, seed, "pil")[0]]).astype(int)

    def _call(self, job: VideoJob, seed: int, output_type: str) -> Any:
        width, height = parse_size(job.size)
        return self._pipeline(
            ImageOps.fit(PICTURE, (width, height)),
            width=width,
            height=height,
            num_frames=job.num_frames,
            fps=job.fps,
            motion_bucket_id=job.motion_bucket_id,
            num_inference_steps=job.num_inference_steps,
            decode_chunk_size=job.decode_chunk_size,
            generator=seeded(seed),
            output_type=output_type,
        ).frames


@pytest.fixture(scope="module")
def library(worker_settings: Settings) -> Library:
    return Library(worker_settings)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def job(**fields: Any) -> VideoJob:
    small = {"num_frames": 3, "num_inference_steps": 2, **fields}
    defaults = {"model": PICTURE_MODEL, **MODELS[PICTURE_MODEL].defaults_in("tiny")}
    return complete(VideoJob, VideoRequest(**small), defaults)


def arrival(seed: int, tick: int = 0, stop_after: int | None = None, **fields: Any) -> Arrival:
    return Arrival((job(**fields), PICTURE), seed, tick, stop_after)


def check_is_the_librarys(library: Library, film: Film, frames: Sequence[Any]) -> None:
    latents = library.latents(film.job, film.seed)
    assert (film.latents[0] - latents).abs().max() <= 1e-3 * latents.std()
    assert abs(np.stack(frames) - library.frames(film.job, film.seed)).max() <= TOLERANCE


# --- alone ---


@pytest.mark.parametrize(
    "fields",
    [
        {"num_frames": 5, "size": "72x64", "fps": 9, "motion_bucket_id": 30},
        {"num_frames": 2},
        {"num_frames": 2, "num_inference_steps": 1},
        {"fps": 1, "motion_bucket_id": 1},
        {"fps": 30, "motion_bucket_id": 255},
        {"size": "64x128"},
        {"size": "80x72"},
    ],
    ids=str,
)  # fmt: skip
def test_a_film_is_the_librarys_own(stepper: Watched, library: Library, fields: dict[str, Any]) -> None:
    made = alone(stepper, (job(**fields), PICTURE), seed=6)
    (film,) = stepper.films
    width, height = parse_size(film.job.size)
    num_frames, num_pieces = film.job.num_frames, -(-film.job.num_frames // 2)
    steps = film.job.num_inference_steps

    check_is_the_librarys(library, film, made.outputs)
    assert [frame.shape for frame in made.outputs] == [(height, width, 3)] * num_frames
    assert all(frame.dtype == np.uint8 for frame in made.outputs)
    num_iterations = 1 + steps + num_pieces
    assert made.progress == [(step, num_iterations) for step in range(1, num_iterations + 1)]
    assert made.made == {"frames": num_frames, "pixel_steps": width * height * (steps + num_pieces)}


def test_a_forward_can_be_run_again(stepper: Watched, library: Library) -> None:
    recorder = Recorder()
    film = stepper.admit((job(), PICTURE), 3, recorder)
    seen = set()
    while recorder.result is None:
        seen.add(film.phase)
        stepper.forward([film])
        recorder.result = stepper.advance(film, stepper.forward([film])[0])

    assert seen == set(Phase)
    check_is_the_librarys(library, film, recorder.outputs)


def test_in_half_precision_the_autoencoder_reads_in_full(worker_settings: Settings) -> None:
    settings = worker_settings.model_copy(update={"dtype": "float16"})
    halved = Watched(MODELS[PICTURE_MODEL], settings)
    vae = halved._pipeline.vae
    read: list[torch.dtype] = []
    with vae.encoder.register_forward_hook(lambda module, args, out: read.append(args[0].dtype)):
        made = alone(halved, (job(), PICTURE), seed=6)

    assert read == [torch.float32]
    assert vae.dtype == torch.float16
    assert abs(np.stack(made.outputs) - Library(settings).frames(job(), 6)).max() <= TOLERANCE


def test_a_larger_film_costs_more(stepper: Watched) -> None:
    fields: list[dict[str, Any]] = [{}, {"num_frames": 25}, {"num_frames": 25, "size": "256x256"}]
    costs = [stepper.cost((job(**each), PICTURE)) for each in fields]

    assert costs == sorted(set(costs))


def test_no_more_than_four_films_are_in_progress(worker_settings: Settings, stepper: Watched) -> None:
    single = worker_settings.model_copy(update={"max_batch_size": 1})

    assert stepper.max_active == 4
    assert FilmStepper(MODELS[PICTURE_MODEL], single).max_active == 1


# --- previews ---


@pytest.mark.parametrize(
    ("size", "shape"), [("64x64", (64, 64, 3)), ("192x64", (40, 128, 3)), ("64x256", (128, 32, 3))]
)
def test_a_preview_is_a_small_frame(stepper: Watched, size: str, shape: tuple[int, ...]) -> None:
    film = stepper.admit((job(size=size), PICTURE), 3, Recorder())
    assert stepper.preview(film) is None
    stepper.advance(film, stepper.forward([film])[0])
    assert stepper.preview(film) is None
    previews = []
    while film.phase is Phase.DENOISE:
        stepper.advance(film, stepper.forward([film])[0])
        previews.append(stepper.preview(film))

    assert len(previews) == 2
    for preview in previews:
        assert preview is not None
        assert preview.shape == shape
        assert preview.dtype == np.uint8
        assert preview.std() > 1


def test_the_last_preview_of_a_small_film_is_its_middle_frame(stepper: Watched) -> None:
    single = job().model_copy(update={"decode_chunk_size": 1})  # frames that do not see each other, as in a preview
    film = stepper.admit((single, PICTURE), 3, recorder := Recorder())
    while stepper.advance(film, stepper.forward([film])[0]) is None:
        preview = stepper.preview(film)

    assert preview is not None
    assert np.array_equal(preview, recorder.outputs[1])


# --- in company ---


def test_equal_pieces_are_decoded_together_and_stay_the_librarys(stepper: Watched, library: Library) -> None:
    recorders, forwards = run(stepper, [arrival(seed, num_frames=5) for seed in (1, 2, 3)])

    for film, recorder in zip(stepper.films, recorders, strict=True):
        check_is_the_librarys(library, film, recorder.outputs)
    together = {forward.key[0] for forward in forwards if isinstance(forward.key, tuple) and len(forward.members) == 3}
    assert together == {Phase.DENOISE, Phase.DECODE}


def test_pieces_of_different_films_are_not_mixed(stepper: Watched, library: Library) -> None:
    recorders, _ = run(stepper, [arrival(1, num_frames=5, num_inference_steps=1), arrival(2, num_frames=4)])

    for film, recorder in zip(stepper.films, recorders, strict=True):
        check_is_the_librarys(library, film, recorder.outputs)


@st.composite
def companies(draw: st.DrawFn) -> list[Arrival]:
    def one() -> Arrival:
        return arrival(
            draw(st.integers(0, 1)),
            tick=draw(st.integers(0, 6)),
            num_frames=draw(st.sampled_from([2, 3, 4])),
            num_inference_steps=draw(st.integers(1, 3)),
        )

    return [one() for _ in range(draw(st.integers(2, 3)))]


@examples(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(company=companies())
def test_in_any_company_a_film_is_the_librarys_own(stepper: Watched, library: Library, company: list[Arrival]) -> None:
    stepper.forget()
    recorders, _ = run(stepper, company)

    by_run = {id(film.run): film for film in stepper.films}
    for recorder in recorders:
        check_is_the_librarys(library, by_run[id(recorder)], recorder.outputs)


def test_frames_leave_while_others_are_still_latent(stepper: Watched) -> None:
    run(stepper, [arrival(1, num_inference_steps=1), arrival(2, num_inference_steps=6)])

    frames_of_the_first = stepper.advanced.index((1, Phase.DECODE, 2))
    assert (2, Phase.DENOISE, 0) in stepper.advanced[frames_of_the_first:]


def test_nobodys_decoding_holds_others_up(stepper: Watched) -> None:
    run(stepper, [arrival(1, num_frames=10, num_inference_steps=1), arrival(2, num_inference_steps=8)])
    order = "".join(str(seed) for seed, phase, _ in stepper.advanced if seed == 2 or phase is Phase.DECODE)

    assert order.count("1") == 5  # pieces of the first
    assert "11" not in order  # between any two of them, the second had its turn


@pytest.mark.parametrize("stop_after", range(1, 6))
def test_who_leaves_is_let_go_at_once_and_changes_nothing(stepper: Watched, library: Library, stop_after: int) -> None:
    (leaver, mate), _ = run(stepper, [arrival(1, stop_after=stop_after), arrival(2)])
    phases = [phase for seed, phase, _ in stepper.advanced if seed == 1]

    assert isinstance(leaver.error, Cancelled)
    assert phases == [Phase.ENCODE, Phase.DENOISE, Phase.DENOISE, Phase.DECODE, Phase.DECODE][:stop_after]
    assert len(leaver.outputs) == (0, 0, 0, 2, 3)[stop_after - 1]
    check_is_the_librarys(library, stepper.films[1], mate.outputs)


@pytest.mark.parametrize(("seed", "error"), [(POISONED, GenerationFailed), (BROKEN, Boom)])
def test_who_fails_changes_nothing_for_the_others(
    stepper: Watched, library: Library, seed: int, error: type[Exception]
) -> None:
    recorders, forwards = run(stepper, [arrival(1), arrival(seed), arrival(2)])

    assert isinstance(recorders[1].error, error)
    assert recorders[1].outputs == []
    assert any(len(forward.members) == 3 for forward in forwards)
    for number in (0, 2):
        check_is_the_librarys(library, stepper.films[number], recorders[number].outputs)


@pytest.mark.anyio
async def test_in_the_engine_previews_come_before_frames(
    stepper: Watched, library: Library, make_bench: MakeBench
) -> None:
    bench = make_bench({"model": Slot(lambda: stepper, is_preloaded=False)})
    request = job(num_inference_steps=6, num_frames=5), PICTURE
    both = [bench.engine.submit(request, None, seed, Terms(600, num_previews=2)) for seed in (1, 2)]
    for generation in both:
        events = [event async for event in generation]
        frames = [event.data for event in events if isinstance(event, Output)]
        kinds = [type(event) for event in events if isinstance(event, Preview | Output | Done)]

        assert [kind for kind, _ in itertools.groupby(kinds)] == [Preview, Output, Done]
        assert kinds.count(Preview) == 2
        assert abs(np.stack(frames) - library.frames(request[0], generation.seed)).max() <= TOLERANCE
        assert [event.step for event in events if isinstance(event, Progress)] == list(range(1, 11))


# --- from a text ---


@pytest.fixture(scope="module")
def films_texts(worker_settings: Settings) -> Stepper[Any]:
    return WholeCall(TextFilmGenerator(MODELS[TEXT_MODEL], worker_settings))


@pytest.fixture(scope="module")
def wan(worker_settings: Settings) -> Any:
    return load_pipeline(MODELS[TEXT_MODEL], worker_settings)


def text_job(**fields: Any) -> TextVideoJob:
    small = {"prompt": "a cat", "num_frames": 5, "num_inference_steps": 2, **fields}
    defaults = {"model": TEXT_MODEL, **MODELS[TEXT_MODEL].defaults_in("tiny")}
    return complete(TextVideoJob, VideoRequest(**small), defaults)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_frames": 9, "size": "80x64"},
        {"num_frames": 1, "num_inference_steps": 1},
        {"guidance_scale": 0},
        {"guidance_scale": 50, "negative_prompt": "a dog"},
        {"prompt": "\U0001f408" * 2000},
    ],
    ids=str,
)
def test_a_film_from_a_text_is_the_librarys_own(films_texts: Stepper[Any], wan: Any, fields: dict[str, Any]) -> None:
    request = text_job(**fields)
    width, height = parse_size(request.size)
    made = alone(films_texts, request, seed=4)
    (film,) = wan(
        request.prompt,
        negative_prompt=request.negative_prompt,
        width=width,
        height=height,
        num_frames=request.num_frames,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        generator=seeded(4),
        output_type="np",
    ).frames

    assert [frame.shape for frame in made.outputs] == [(height, width, 3)] * request.num_frames
    assert all(frame.dtype == np.uint8 for frame in made.outputs)
    assert abs(np.stack(made.outputs) - film * 255).max() < TOLERANCE
    num_iterations = request.num_inference_steps + 1 + request.num_frames // 4
    assert made.progress == [(step, num_iterations + 1) for step in range(1, num_iterations + 2)]
    assert made.made == {"frames": request.num_frames, "pixel_steps": width * height * num_iterations}


@pytest.fixture(scope="module")
def films_stories(worker_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Stepper[Any]:
    """Of another shape than the published ones: one token a latent frame, and two frames in each."""
    folder = tmp_path_factory.mktemp("stories")
    storyteller.untrained().save_pretrained(folder)
    described = {"id": "stories", "task": "video", "input_modalities": ["text"], "folder": {"path": folder}}
    return WholeCall(TextFilmGenerator(Model.model_validate(described), worker_settings))


def test_progress_is_told_of_every_piece_that_a_model_decodes(films_stories: Stepper[Any]) -> None:
    made = alone(films_stories, text_job(num_frames=5, num_inference_steps=2), seed=4)

    assert [frame.shape for frame in made.outputs] == [(64, 64, 3)] * 5
    assert made.progress == [(step, 6) for step in range(1, 7)]  # two steps, three pieces to decode, the end


def test_a_size_that_is_no_whole_number_of_a_models_patches_is_refused(films_stories: Stepper[Any]) -> None:
    (recorder,), _ = run(films_stories, [Arrival(text_job(size="80x64"))])

    assert isinstance(recorder.error, InvalidRequest)
    assert recorder.error.param == "size"
    assert "divisible by 64" in recorder.error.message


@pytest.mark.parametrize("stop_after", range(1, 6))  # two steps, two pieces to decode, the end
def test_a_pipelines_call_stops_at_the_iteration_after_which_its_caller_is_gone(
    films_texts: Stepper[Any], stop_after: int
) -> None:
    before = alone(films_texts, text_job(), seed=4).outputs
    (recorder,), _ = run(films_texts, [Arrival(text_job(), 4, stop_after=stop_after)])

    assert isinstance(recorder.error, Cancelled)
    assert len(recorder.progress) == stop_after  # the recorder refuses more
    assert np.array_equal(alone(films_texts, text_job(), seed=4).outputs, before)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"num_frames": 8}, "num_frames"),
        ({"num_frames": 10}, "num_frames"),
        ({"size": "72x64"}, "size"),
        ({"size": "64x72"}, "size"),
        ({"motion_bucket_id": 5}, "motion_bucket_id"),
    ],
)
def test_what_the_library_would_round_or_ignore_is_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        text_job(**fields)
    assert [error["loc"] for error in refusal.value.errors()] == [(field,)]


@pytest.mark.parametrize(
    "fields", [{"prompt": "x"}, {"negative_prompt": "x"}, {"guidance_scale": 2}, {"num_frames": 65}]
)
def test_what_is_for_texts_is_refused_where_pictures_are_filmed(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as refusal:
        job(**fields)
    assert [error["loc"] for error in refusal.value.errors()] == [tuple(fields)]


def passes(text: str) -> bool:
    try:
        return bool(check_is_text(text))
    except ValueError:
        return False


@examples(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(min_size=1, max_size=60).filter(passes))
def test_any_text_that_passes_can_be_filmed(films_texts: Stepper[Any], text: str) -> None:
    assert len(alone(films_texts, text_job(prompt=text, num_frames=1, num_inference_steps=1)).outputs) == 1


def test_every_video_model_has_the_stepper_that_its_pipeline_needs(data_dir: Path, worker_settings: Settings) -> None:
    steppers = {name: type(make_stepper(model, worker_settings)) for name, model in MODELS.items()}

    assert steppers == {PICTURE_MODEL: FilmStepper, TEXT_MODEL: WholeCall}


@pytest.mark.parametrize(("name", "wrong"), [(PICTURE_MODEL, "text"), (TEXT_MODEL, "image")])
def test_a_checkpoint_that_is_not_what_its_entry_says_is_named(
    worker_settings: Settings, name: str, wrong: str
) -> None:
    model = MODELS[name].model_copy(update={"input_modalities": (wrong,)})

    with pytest.raises(Unfit, match=r"it is of the kind '?.*Pipeline'?, and .* is wanted here"):
        make_stepper(model, worker_settings)


@pytest.mark.anyio
async def test_a_pipelines_call_shows_small_previews_and_makes_the_same_film(
    films_texts: Stepper[Any], make_bench: MakeBench
) -> None:
    request = text_job(size="128x64", num_inference_steps=6)
    plain = alone(films_texts, request, seed=4)
    bench = make_bench({"model": Slot(lambda: films_texts, is_preloaded=False)})
    events = [event async for event in bench.engine.submit(request, None, 4, Terms(600, num_previews=2))]
    previews = [event for event in events if isinstance(event, Preview)]
    frames = [event.data for event in events if isinstance(event, Output)]

    assert [preview.step for preview in previews] == [3, 6]  # of six steps, two pieces and the end
    assert all(preview.picture.dtype == np.uint8 for preview in previews)
    assert {preview.picture.shape for preview in previews} == {(64, 128, 3)}
    assert all(preview.picture.std() > 1 for preview in previews)
    assert np.array_equal(np.stack(frames), np.stack(plain.outputs))
    assert bench.count("iterations_total") == len(plain.progress)
