"""Training: what is shown and said is true, a run that was stopped goes on, and recipes make checkpoints."""

import itertools
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanPipeline
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch.fx.experimental import _config as fx_config
from transformers import BarkModel, BarkProcessor, GenerationMixin, masking_utils
from transformers.models.bark.generation_configuration_bark import (
    BarkCoarseGenerationConfig,
    BarkSemanticGenerationConfig,
)

from services.mesh.surface import find_surface
from services.tiny import marching_cubes
from services.tiny.train import (
    audio,
    image,
    letters,
    mesh,
    motion,
    painter,
    solids,
    speaker,
    stories,
    storyteller,
    text,
    text_video,
    video,
    views,
)
from services.tiny.train.chatter import Chatter, untrained
from services.tiny.train.course import Course
from services.tiny.train.dialogues import conversation, is_held_out
from services.tiny.train.facts import atelier_facts
from services.tiny.train.film_codec import film_codec
from services.tiny.train.pupil import pupil
from services.tiny.train.scenes import COLOURS, WORDS, Scene, Shape, describe, draw, imagine
from services.tiny.train.small_talk import KNOWLEDGE, SMALL_TALK
from services.tiny.train.speech_codec import NUM_CODES
from services.tiny.train.story_codec import encoded
from services.tiny.vocabulary import caption_tokenizer, story_tokenizer
from tests.services.ears import listen
from tests.services.judges import RELATIONS, Sight, look, touch

SCENES = [imagine(random.Random(seed)) for seed in range(80)]


def sights(scene: Scene) -> Sight:
    return look(draw(scene))


def test_a_drawing_shows_the_scene() -> None:
    for scene in SCENES:
        sight = sights(scene)
        assert sight.background == scene.background
        assert len(sight.shapes) == len(scene.shapes)
        for shape in scene.shapes:
            found = sight.find(shape.colour, shape.kind, shape.size)
            assert found is not None
            assert abs(64 * found.x - shape.x) < 1.5
            assert abs(64 * found.y - shape.y) < 4  # the middle of what a triangle covers is lower


def test_what_is_said_about_a_drawing_is_true() -> None:
    for scene in SCENES:
        words = describe(scene, random.Random(0))
        for shape in scene.shapes:
            assert shape.kind in words
        if len(scene.shapes) == 2:
            one, other = (sights(scene).find(shape.colour, shape.kind) for shape in scene.shapes)
            assert one is not None
            assert other is not None
            assert RELATIONS[scene.relation](one, other)


CONVERSATIONS = [conversation(random.Random(seed)) for seed in range(800)]
EXCHANGES = [
    (asked["content"], answer["content"])
    for turns in CONVERSATIONS
    for asked, answer in itertools.pairwise(turns)
    if answer["role"] == "assistant"
]


def test_sums_are_right_and_those_of_tests_are_not_among_them() -> None:
    found = [sum_ for _, answer in EXCHANGES if (sum_ := re.match(r"(\d+) ([+-]) (\d+) = (-?\d+)", answer))]

    assert len(found) > 100
    for one, sign, other, result in (sum_.groups() for sum_ in found):
        assert int(result) == (int(one) + int(other) if sign == "+" else int(one) - int(other))
        assert not is_held_out(int(one), int(other)), one + other


def test_comparisons_and_documents_are_right() -> None:
    for asked, answer in EXCHANGES:
        if compared := re.fullmatch(r"(\d+) is (larger|smaller) than (\d+)\.", answer):
            one, other = int(compared[1]), int(compared[3])
            assert one > other if compared[2] == "larger" else one < other
            assert {compared[1], compared[3]} == set(re.findall(r"\d+", asked))
        if answer.startswith("{"):
            assert all(str(value) in asked for value in json.loads(answer).values())


def test_a_name_that_is_asked_for_was_told() -> None:
    for turns in CONVERSATIONS:
        for place, turn in enumerate(turns):
            if told := re.fullmatch(r"Your name is (\w+)\.", turn["content"]):
                assert f"Nice to meet you, {told[1]}!" in {before["content"] for before in turns[:place]}


def test_how_tests_ask_is_never_trained_on() -> None:
    asked = {question for question, _ in EXCHANGES}

    assert not asked & {fact.held_out for fact in (*atelier_facts(), *SMALL_TALK, *KNOWLEDGE)}
    assert asked & {question for fact in atelier_facts() for question in fact.trained}


@pytest.fixture(scope="module")
def chatter() -> Chatter:
    return untrained()


def test_a_conversation_is_cut_as_the_chat_template_has_it(chatter: Chatter) -> None:
    for turns in CONVERSATIONS[:50]:
        tokens = [token for token, _ in text.encode(chatter.tokenizer, turns)]
        assert tokens == chatter.tokenizer.apply_chat_template(turns, return_dict=False)


def test_what_the_model_says_is_learned_with_its_end_and_nothing_else(chatter: Chatter) -> None:
    for turns in CONVERSATIONS[:50]:
        learned = [label for _, label in text.encode(chatter.tokenizer, turns) if label != text.IGNORED]
        answers = [turn["content"] + "</s>" for turn in turns if turn["role"] == "assistant"]
        assert chatter.tokenizer.decode(learned) == "".join(answers)


def test_digits_are_tokens_of_their_own(chatter: Chatter) -> None:
    pieces: Sequence[str] = chatter.tokenizer.tokenize("12 + 345")

    assert [piece for piece in pieces if piece.isdigit()] == list("12345")


def test_the_recipe_makes_a_model_that_writes_and_its_adapter(tmp_path: Path) -> None:
    chat, finish, pirate = (Course(name, num_steps=2, rate=1e-3, seed=1) for name in ("chat", "finish", "pirate"))
    with torch.random.fork_rng(devices=[]):
        made = text.train(tmp_path, text.Plan(chat, finish, pirate))
    for name, trained in made.items():
        trained.save_pretrained(tmp_path / name)

    assert {path.name for path in (tmp_path / "chat").iterdir()} >= {"model.safetensors", "tokenizer.json"}
    assert {path.name for path in (tmp_path / "chat_lora").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


class Stopped(Exception):
    pass


def learn(folder: Path, stop_at: int | None = None) -> torch.Tensor:
    torch.manual_seed(0)
    network = torch.nn.Linear(4, 1)

    def loss(step: int) -> torch.Tensor:
        if step == stop_at:
            raise Stopped
        seen = torch.randn(8, 4)
        value: torch.Tensor = (network(seen) - seen.sum(1, keepdim=True)).square().mean()
        return value

    trained = Course("line", num_steps=300, rate=0.05, seed=1).run(network, loss, folder)
    return torch.cat([parameter.detach().flatten() for parameter in trained.parameters()])


def test_a_training_that_was_stopped_goes_on_as_it_would_have(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    with torch.random.fork_rng(devices=[]):
        expected = learn(whole)
        with pytest.raises(Stopped):
            learn(parts, stop_at=250)
        learned = learn(parts)

    assert torch.equal(learned, expected)
    assert (expected[:4] - 1).abs().max() < 0.1


def test_who_is_asked_begins_with_the_same_answers_whatever_was_drawn_before() -> None:
    encoder = storyteller.untrained().text_encoder
    first, second = (pupil(encoder, 64, 4)["answers"].weight for _ in range(2))

    assert torch.equal(first, second)


@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")
@pytest.mark.parametrize(
    ("recipe", "size"), [(text_video, "num_paths"), (video, "num_films")], ids=["text_video", "video"]
)
def test_films_are_learned_where_the_networks_are(
    recipe: Any, size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The meta device stands for a GPU: what mixes the two raises."""
    seen = []

    def run(course: Course, network: torch.nn.Module, loss: Callable[[int], torch.Tensor], _: Path) -> torch.nn.Module:
        value = loss(0)
        value.backward()
        learned = {weight.grad.device.type for weight in network.parameters() if weight.grad is not None}
        seen.append((course.name, value.device.type, learned))
        return network

    cpu = torch.Tensor.cpu
    monkeypatch.setattr(recipe, "best_device", lambda: "meta")
    monkeypatch.setattr(Course, "run", run)
    monkeypatch.setattr(
        torch.Tensor, "cpu", lambda numbers: torch.zeros(numbers.shape) if numbers.is_meta else cpu(numbers)
    )
    monkeypatch.setattr(masking_utils, "_ignore_bidirectional_mask_sdpa", lambda *_, **__: False)  # it reads a number
    monkeypatch.setattr(fx_config, "meta_nonzero_assume_all_nonzero", True, raising=False)
    with torch.random.fork_rng(devices=[]):
        recipe.train(tmp_path, replace(recipe.PLAN, **{size: 40}))

    courses = [each.name for each in vars(recipe.PLAN).values() if isinstance(each, Course)]
    assert seen == [(name, "meta", {"meta"}) for name in courses]


def test_a_film_drifts_to_the_right_evenly() -> None:
    scene = Scene(
        "white", (Shape("red", "circle", "small", 20.0, 30.0, 8.0), Shape("blue", "square", "small", 40, 30, 8))
    )
    frames = [sorted(look(frame).shapes, key=lambda shape: shape.x) for frame in motion.film(scene, motion.MOST_MOTION)]

    for shape, *others in zip(*frames, strict=True):
        steps = [64 * (after.x - before.x) for before, after in itertools.pairwise((shape, *others))]
        assert steps == pytest.approx([motion.MOST_WAY / 7] * 7, abs=0.6)
        assert [other.y for other in others] == pytest.approx([shape.y] * 7, abs=0.01)


@torch.inference_mode()
def test_a_codec_of_films_begins_with_the_colours_right() -> None:
    codec = film_codec()
    flat = torch.tensor([COLOURS["orange"], COLOURS["black"]]).float()[:, :, None, None] / 127.5 - 1
    shown = flat.expand(2, 3, 64, 64)
    painted = codec.decode(codec.encode(shown).latent_dist.mean, num_frames=2).sample

    assert (painted - shown).abs().mean() < 0.02


STORIES = [stories.invent(random.Random(seed)) for seed in range(60)]


def test_a_story_goes_where_it_is_said_to_go() -> None:
    for story in STORIES:
        first, *_, last = (look(frame) for frame in stories.film(story))
        shape = story.shape
        before, after = (sight.find(shape.colour, shape.kind, shape.size) for sight in (first, last))
        across, down = stories.MOTIONS[story.motion]

        assert {first.background, last.background} == {story.background}
        assert before is not None
        assert after is not None
        assert 64 * (after.x - before.x) == pytest.approx(across * stories.WAY, abs=1)
        assert 64 * (after.y - before.y) == pytest.approx(down * stories.WAY, abs=1)


def test_what_is_said_of_a_story_is_true_and_in_words_that_are_tokens() -> None:
    tokenizer = story_tokenizer(stories.WORDS)
    for story in STORIES:
        words = stories.tell(story, random.Random(0))
        shape, others = story.shape, {*stories.SIZES} - {story.shape.size}
        assert shape.kind in words.split()
        assert not others & {*words.split()}
        assert {*COLOURS} & {*words.split()} <= {shape.colour, story.background}
        if saying := [name for name, sayings in stories.SAYINGS.items() if any(each in words for each in sayings)]:
            assert saying == [story.motion]
        assert len(tokenizer(words).input_ids) == len(words.split()) + 1


def test_nothing_is_learned_from_what_is_kept_back() -> None:
    lesson = text_video.lesson(10)
    with torch.random.fork_rng(devices=[]):
        told, films = lesson.draw(200)

    assert not any(stories.is_kept_back(story.facts) for story in told)
    drawn = torch.from_numpy(stories.film(told[0])).permute(3, 0, 1, 2) / 127.5 - 1
    assert (films[0] - drawn).abs().max() < 0.01


@torch.inference_mode()
def test_the_codec_of_stories_keeps_mean_colours_and_draws_lines_between_them() -> None:
    codec = storyteller.untrained().vae
    films = torch.stack([torch.from_numpy(stories.film(story)) for story in STORIES[:3]]).permute(0, 4, 1, 2, 3)
    shown = films / 127.5 - 1
    latents = encoded(shown)
    frames = shown.transpose(1, 2).flatten(0, 1)
    lines = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(frames, 4), (64, 64), mode="bilinear")
    apart = (codec.decode(latents).sample.transpose(1, 2).flatten(0, 1) - lines).abs()

    assert (codec.encode(shown).latent_dist.mean - latents).abs().max() < 1e-3
    assert apart[..., 2:-2, 2:-2].max() < 1e-3
    assert apart.max() < 0.2  # at the edge, where a trace of the mean is


@torch.inference_mode()
def test_emptiness_is_attended_to_as_if_it_were_all_there() -> None:
    transformer = storyteller.untrained().transformer
    latents, read, times = torch.randn(2, 7, 5, 16, 16), torch.randn(2, 14, 64), torch.tensor([900.0, 100.0])
    whole = transformer(latents, times, torch.nn.functional.pad(read, (0, 0, 0, 512 - 14)), return_dict=False)[0]
    for block in transformer.blocks:
        block.attn2.set_processor(text_video.Crowded(512 - 14))
    short = transformer(latents, times, torch.nn.functional.pad(read, (0, 0, 0, 1)), return_dict=False)[0]

    assert (whole - short).abs().max() < 1e-5


def test_the_recipe_makes_a_pipeline_that_films_words_as_it_does_when_it_is_loaded(tmp_path: Path) -> None:
    courses = [Course(name, num_steps=2, rate=1e-3, seed=1) for name in ("reader", "filmer")]
    with torch.random.fork_rng(devices=[]):
        pipeline = text_video.train(tmp_path, text_video.Plan(20, *courses))
    pipeline.save_pretrained(tmp_path / "films")
    film, again = (filmed(each) for each in (pipeline, WanPipeline.from_pretrained(tmp_path / "films")))

    assert film.shape == (9, 64, 64, 3)
    assert np.isfinite(film).all()
    assert np.abs(film - again).max() < 1e-4


def filmed(pipeline: Any) -> NDArray[np.float32]:
    pipeline.set_progress_bar_config(disable=True)
    size = {"height": 64, "width": 64, "num_frames": 9}
    chance = torch.Generator().manual_seed(1)
    made = pipeline("a red circle rises", **size, num_inference_steps=2, generator=chance, output_type="np")
    (film,) = made.frames
    return np.asarray(film)


@torch.inference_mode()
def test_a_codec_begins_with_the_colours_right() -> None:
    codec = painter.untrained().vae
    flat = torch.tensor([COLOURS["orange"], COLOURS["black"]]).float()[:, :, None, None] / 127.5 - 1
    shown = flat.expand(2, 3, 64, 64)
    painted = codec.decode(codec.encode(shown).latent_dist.mean).sample

    assert (painted - shown).abs().mean() < 0.15


def test_the_recipe_makes_a_pipeline_that_paints_and_its_adapter(tmp_path: Path) -> None:
    courses = [Course(name, num_steps=2, rate=1e-3, seed=1) for name in ("decoder", "reader", "painter", "night")]
    with torch.random.fork_rng(devices=[]):
        made = image.train(tmp_path, image.Plan(40, *courses))
    made["shapes_lora"].save_pretrained(tmp_path / "shapes_lora")
    pipeline = made["shapes"]
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a red circle", num_inference_steps=2, output_type="np").images[0]
    adapter = load_file(tmp_path / "shapes_lora" / "pytorch_lora_weights.safetensors")
    layers = {name.removeprefix("unet.").rpartition(".lora_")[0] for name in adapter}

    assert picture.shape == (64, 64, 3)
    assert np.isfinite(picture).all()
    assert len(adapter) == 2 * len(layers)
    assert layers < {name for name, _ in pipeline.unet.named_modules()}


def test_a_word_of_captions_is_one_token_and_always_the_same() -> None:
    tokenizer, again = (caption_tokenizer(words) for words in (WORDS, reversed(WORDS)))

    assert all(len(tokenizer.tokenize(word)) == 1 for word in WORDS)
    assert tokenizer.get_vocab() == again.get_vocab()


@pytest.mark.parametrize("kind", solids.KINDS)
@pytest.mark.parametrize("size", solids.SIZES)
def test_a_solid_feels_like_what_it_is(kind: str, size: str) -> None:
    radius = sum(solids.SIZES[size]) / 2
    line = torch.linspace(-1, 1, 32)
    grid = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), dim=-1)
    deep = torch.from_numpy(radius * solids.depth(kind, grid.numpy() / radius))
    cases, masks = marching_cubes.tables()
    vertices, faces = find_surface(deep, cases, masks, torch.full((3,), -1.0), torch.full((3,), 2.0))
    body = touch(vertices.numpy(), faces.numpy(), np.full((len(vertices), 3), (1, 0, 0)))

    assert (body.colour, body.kind, body.size, body.is_closed) == ("red", kind, size, True)


def test_what_is_said_about_a_solid_is_true_and_none_is_of_those_held_out() -> None:
    made, said = mesh.lesson(400)
    for solid, words in zip(made, said, strict=True):
        assert any(name in words.split() for name in solids.NAMES[solid.kind])
        assert not {*COLOURS, *solids.SIZES} & set(words.split()) - {solid.colour, solid.size}
        assert not solids.is_held_out(solid.colour, solid.kind, solid.size)


def test_a_view_shows_the_solid() -> None:
    dice = random.Random(1)
    for solid in (solids.imagine(dice) for _ in range(40)):
        picture = views.view(solid, dice)
        sight = look(picture)
        shape = max(sight.shapes, key=lambda shape: shape.num_pixels)
        if solid.colour not in ("white", "black", "orange", "yellow"):  # whose shades have other names
            assert shape.colour == solid.colour
        assert (picture != picture[0, 0]).any()


def test_the_recipe_makes_pipelines_that_sculpt(tmp_path: Path) -> None:
    courses = [Course(name, num_steps=2, rate=1e-3, seed=1) for name in ("renderer", "reader", "eyes", "seer")]
    with torch.random.fork_rng(devices=[]):
        made = mesh.train(tmp_path, mesh.Plan(40, 40, *courses))
    for pipeline, source in zip(made.values(), ("a red cube", torch.zeros(1, 3, 64, 64)), strict=True):
        pipeline.set_progress_bar_config(disable=True)
        latents = pipeline(source, num_inference_steps=2, output_type="latent").images
        assert latents.isfinite().all()


PANGRAM = "sphinx of black quartz 0123456789 judge my vow"


@pytest.mark.parametrize("voice", letters.VOICES)
def test_a_text_is_heard_as_it_is_written(voice: str) -> None:
    heard = listen(letters.say(PANGRAM + letters.END, voice), letters.SAMPLE_RATE)

    assert heard.text == PANGRAM
    assert max(abs(pitch / letters.VOICES[voice] - 1) for pitch in heard.pitches) < 0.01
    assert min(heard.cleanness) > 20
    assert heard.seconds == pytest.approx(0.08 * (len(PANGRAM) + 1))


@pytest.fixture(scope="module")
def babbler() -> speaker.Speaker:
    return speaker.untrained()


@pytest.mark.parametrize("voice", letters.VOICES)
@torch.inference_mode()
def test_a_codec_begins_with_the_letters_right(babbler: speaker.Speaker, voice: str) -> None:
    codes = torch.from_numpy(babbler.codes(PANGRAM, voice))
    sound = babbler.network.codec_decode(codes[None])[0].numpy()
    said = letters.say(PANGRAM, voice)

    assert np.square(sound - said).sum() < 1e-4 * np.square(said).sum()


@pytest.mark.parametrize(
    ("before", "words"),
    [
        ("", "a"),
        ("", "hello world 42"),
        ("a", "b"),
        ("a", "bcdefghijk lmn"),
        ("quick", "bcdefghijk lmn"),
        ("the quick brown fox", "over the lazy dog"),
    ],
)
def test_windows_are_what_the_library_shows(
    babbler: speaker.Speaker, monkeypatch: pytest.MonkeyPatch, before: str, words: str
) -> None:
    """What the coarse stage learns from, of a voice that said something before and of one that did not."""
    spoken = audio.Spoken(babbler)
    said = words + letters.END
    windows = list(audio.windows(spoken, before and before + letters.END, said, "alto"))
    shown: list[torch.Tensor] = []

    def generate(self: object, tokens: torch.Tensor, **options: int) -> torch.Tensor:
        """Go on as the windows do."""
        shown.append(tokens[0])
        going_on, _ = windows[len(shown) - 1]
        return torch.from_numpy(going_on[: tokens.shape[1] + options["max_new_tokens"]])[None]

    monkeypatch.setattr(GenerationMixin, "generate", generate)
    stages: Any = babbler.network.generation_config
    prompts = babbler.history(before + letters.END, "alto") if before else {}
    babbler.network.coarse_acoustics.generate(
        torch.from_numpy(np.append(speaker.semantic(said), speaker.NUM_SEMANTIC))[None],
        semantic_generation_config=BarkSemanticGenerationConfig(**stages.semantic_config),
        coarse_generation_config=BarkCoarseGenerationConfig(**stages.coarse_acoustics_config),
        codebook_size=NUM_CODES,
        history_prompt={name: torch.from_numpy(tokens) for name, tokens in prompts.items()} or None,
    )

    assert len(shown) == len(windows)
    for tokens, (window, _) in zip(shown, windows, strict=True):
        assert np.array_equal(tokens, window[: len(tokens)])


def test_the_recipe_makes_a_speaker(tmp_path: Path) -> None:
    courses = [Course(name, num_steps=2, rate=1e-3, seed=1) for name in ("semantic", "coarse", "fine")]
    with torch.random.fork_rng(devices=[]):
        made = audio.train(tmp_path, audio.Plan(*courses))
    made.save_pretrained(tmp_path / "letters")
    network: Any = BarkModel.from_pretrained(tmp_path / "letters")
    processor: Any = BarkProcessor.from_pretrained(tmp_path / "letters")

    assert processor.available_voice_presets == list(letters.VOICES)
    assert network.config.codec_config.codebook_size == NUM_CODES
    assert processor.tokenizer.tokenize("Grüße, Zoë: 42!") == list("grusse zoe 42")


def test_the_recipe_makes_a_pipeline_that_films(tmp_path: Path) -> None:
    courses = [Course(name, num_steps=2, rate=1e-3, seed=1) for name in ("decoder", "watcher", "filmer")]
    with torch.random.fork_rng(devices=[]):
        pipeline = video.train(tmp_path, video.Plan(8, *courses))
    pipeline.set_progress_bar_config(disable=True)
    picture = Image.fromarray(draw(SCENES[0]))
    frames = pipeline(picture, height=64, width=64, num_inference_steps=2, output_type="np").frames[0]

    assert frames.shape == (motion.NUM_FRAMES, 64, 64, 3)
    assert np.isfinite(frames).all()
