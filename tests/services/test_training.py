"""Training: what is said about a picture is true, a run that was stopped goes on, and its recipe makes a checkpoint."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from services.tiny.train.course import Course
from services.tiny.train.image import Plan, train
from services.tiny.train.scenes import Scene, describe, draw, imagine
from tests.services.judges import RELATIONS, Sight, look

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


def test_the_recipe_makes_a_pipeline_that_paints(tmp_path: Path) -> None:
    names = ("codec", "finish", "painter")
    codec, finish, painter = (Course(name, num_steps=2, rate=1e-3, seed=1) for name in names)
    with torch.random.fork_rng(devices=[]):
        pipeline = train(tmp_path, Plan(40, codec, finish, painter))
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a red circle", num_inference_steps=2, output_type="np").images[0]

    assert picture.shape == (64, 64, 3)
    assert np.isfinite(picture).all()
