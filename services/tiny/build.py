"""The recipes by name, and `ensure`, which builds one that is absent or stale; loads torch only to build."""

import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from services.tiny import folder


def _text(target: Path) -> None:
    from services.tiny import text

    text.build(target)


def _text_lora(target: Path) -> None:
    from services.tiny import text_lora

    text_lora.build(target)


def _audio(target: Path) -> None:
    from services.tiny import audio

    audio.build(target)


def _image(target: Path) -> None:
    from services.tiny import image

    image.build(target)


def _image_lora(target: Path) -> None:
    from services.tiny import image_lora

    image_lora.build(target)


def _video(target: Path) -> None:
    from services.tiny import video

    video.build(target)


def _text_video(target: Path) -> None:
    from services.tiny import text_video

    text_video.build(target)


def _mesh(target: Path) -> None:
    from services.tiny import mesh

    mesh.build(target)


def _mesh_image(target: Path) -> None:
    from services.tiny import mesh

    mesh.build_from_image(target)


RECIPES: Mapping[str, Callable[[Path], None]] = {
    "text": _text,
    "text_lora": _text_lora,
    "audio": _audio,
    "image": _image,
    "image_lora": _image_lora,
    "video": _video,
    "text_video": _text_video,
    "mesh": _mesh,
    "mesh_image": _mesh_image,
}


def ensure(recipe: str, root: Path) -> Path:
    """Return `root/recipe`, built when it is absent or stale.

    Safe in several processes at once. The caller's random state stays as it was.

    Raises:
        KeyError: no such recipe.
        ModuleNotFoundError: a library that the recipe needs is not installed.
        OSError: the disk is full or `root` cannot be written.
    """
    write = RECIPES[recipe]

    def write_quietly(target: Path) -> None:
        with _without_torchvision_hint(), _with_os_errors():
            write(target)

    return folder.fill(root / recipe, stamp(recipe), write_quietly)


def stamp(recipe: str) -> str:
    """Return a hash over all that the recipe's bytes depend on: this package and the libraries' versions."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    for library in _libraries(recipe):
        digest.update(f"{library}=={version(library)}\n".encode())
    return digest.hexdigest()


def _libraries(recipe: str) -> tuple[str, ...]:
    """Name what the recipe needs: a machine for text alone need not have diffusers."""
    return (
        ("torch", "transformers")
        if recipe in {"text", "text_lora", "audio"}
        else ("torch", "transformers", "diffusers")
    )


@contextmanager
def _without_torchvision_hint() -> Iterator[None]:
    """Drop transformers' advice to install torchvision, which diffusers' imports set off: Pillow is enough here."""
    logger = logging.getLogger("transformers.utils.import_utils")

    def is_other(record: logging.LogRecord) -> bool:
        return "requires torchvision" not in record.getMessage()

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


@contextmanager
def _with_os_errors() -> Iterator[None]:
    """Raise as OSError what the writers in Rust (tokenizers, safetensors) raise as exceptions of their own."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), str(error)) from error
