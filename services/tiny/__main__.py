"""`python -m services.tiny`: builds the tiny checkpoints that are not fresh, a line each."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from services.tiny.build import RECIPES, ensure


def main(arguments: Sequence[str] | None = None) -> int:
    """Build what was asked for and return the exit status."""
    options = _parser().parse_args(arguments)
    for recipe in options.recipes or RECIPES:
        started = time.perf_counter()
        try:
            checkpoint = ensure(recipe, options.root)
        except (OSError, ModuleNotFoundError) as error:
            sys.stderr.write(f"cannot build {recipe} in {options.root}: {error}\n")
            return 1
        seconds = time.perf_counter() - started
        sys.stdout.write(f"{recipe:<10} {_megabytes(checkpoint):5.1f} MB {seconds:6.1f} s\n")
        sys.stdout.flush()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.tiny", description=__doc__)
    data_dir = Path(os.environ.get("ATELIER_DATA_DIR") or ".atelier")
    parser.add_argument("--root", type=Path, default=data_dir / "tiny", help="where to build (default: %(default)s)")
    parser.add_argument(
        "recipes", nargs="*", type=_recipe, metavar="recipe", help=f"{', '.join(RECIPES)} (default: all)"
    )
    return parser


def _recipe(name: str) -> str:
    if name not in RECIPES:
        raise argparse.ArgumentTypeError(f"no recipe {name!r}; there are {', '.join(RECIPES)}")
    return name


def _megabytes(checkpoint: Path) -> float:
    return sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file()) / 1e6


if __name__ == "__main__":
    sys.exit(main())
