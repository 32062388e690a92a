"""`python -m services.tiny.train MODALITY`: trains a tiny checkpoint, and goes on where it stopped."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from services.tiny.build import TRAINED

Trained = Mapping[str, Any]  # what `services.tiny.build` calls it, and what writes itself by `save_pretrained`


def _audio(scratch: Path) -> Trained:
    from services.tiny.train import audio

    return {"letters": audio.train(scratch, audio.PLAN)}


def _image(scratch: Path) -> Trained:
    from services.tiny.train import image

    return image.train(scratch, image.PLAN)


def _mesh(scratch: Path) -> Trained:
    from services.tiny.train import mesh

    return mesh.train(scratch, mesh.PLAN)


def _text(scratch: Path) -> Trained:
    from services.tiny.train import text

    return text.train(scratch, text.PLAN)


def _text_video(scratch: Path) -> Trained:
    from services.tiny.train import text_video

    return {"films": text_video.train(scratch, text_video.PLAN)}


def _video(scratch: Path) -> Trained:
    from services.tiny.train import video

    return {"moves": video.train(scratch, video.PLAN)}


RECIPES: Mapping[str, Callable[[Path], Trained]] = {
    "audio": _audio,
    "image": _image,
    "mesh": _mesh,
    "text": _text,
    "text_video": _text_video,
    "video": _video,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what was asked for, and write its weights."""
    options = _parser().parse_args(arguments)
    scratch = options.scratch / options.modality
    scratch.mkdir(parents=True, exist_ok=True)
    for recipe, trained in RECIPES[options.modality](scratch).items():
        trained.save_pretrained(TRAINED / recipe)
        _halve(TRAINED / recipe)
    return 0


def _halve(folder: Path) -> None:
    """Store the weights in half precision; their configurations still say that they are loaded in single."""
    for file in folder.rglob("*.safetensors"):
        weights = load_file(file)
        weights |= {name: tensor.half() for name, tensor in weights.items() if tensor.is_floating_point()}
        save_file(weights, file, {"format": "pt"})
        file.chmod(0o644)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.tiny.train", description=__doc__)
    data_dir = Path(os.environ.get("ATELIER_DATA_DIR") or ".atelier")
    parser.add_argument(
        "--scratch", type=Path, default=data_dir / "train", help="where it goes on from (default: %(default)s)"
    )
    parser.add_argument("modality", choices=RECIPES)
    return parser


if __name__ == "__main__":
    sys.exit(main())
