"""A checkpoint's folder: what it is, and what is wrong with it; knows no library that runs it.

`check` looks for what the libraries would overlook or misunderstand, `damage` for what they say without naming a file.
"""

import json
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

INDEX, CONFIG = "model_index.json", "config.json"
SETTINGS = {
    INDEX,
    CONFIG,
    "generation_config.json",
    "preprocessor_config.json",
    "scheduler_config.json",
    "tokenizer_config.json",
}
TOKENIZER = "tokenizer.json"
VOCABULARIES = (TOKENIZER, "vocab.*", "*.model", "*.tiktoken", "tekken.json")  # of which a tokenizer has one
SHARDS = ".index.json"
OWN_CODE = "it wants code of its own to be run, which is never done"
LENGTH_BYTES = 8  # of a safetensors file, before its header


class Unfit(Exception):
    """A checkpoint that cannot be loaded; says why in words that go behind a colon, and names no path."""


@dataclass(frozen=True)
class Kind:
    """What a stepper runs.

    Args:
        called: for people.
        names: the class in `model_index.json`, or the `model_type` in `config.json`.
    """

    called: str
    names: Collection[str]


def check(folder: Path, kind: Kind | None = None) -> None:
    """Look for what the libraries would overlook, or misunderstand.

    Args:
        folder: in `save_pretrained` layout.
        kind: what it is to be of; None: whatever it is.

    Raises:
        Unfit: it cannot be loaded.
    """
    files = _files(folder)
    settings = {str(file.relative_to(folder)): _object(folder, file) for file in files if file.name in SETTINGS}
    index, config = settings.get(INDEX), settings.get(CONFIG)
    if index is None and config is None:
        raise Unfit(f"its folder has neither {CONFIG} nor {INDEX}")
    if kind is not None:
        _check_kind(index, config or {}, kind)
    parts = {"": "Tokenizer"} if index is None else _parts(index)
    for part, of in parts.items():
        names = [file.name for file in files if file.parent == folder / part]
        if not names:
            raise Unfit(f"its part {part} is missing")
        if "Tokenizer" in of:
            _check_tokenizer(part, names)


def damage(folder: Path) -> str | None:
    """Find a file that cannot be read as what it is, by its form alone; None: there is none.

    Raises:
        Unfit: the folder cannot be read.
    """
    for file in _files(folder):
        try:
            wrong = _wrong_with(file)
        except PermissionError:
            wrong = "may not be read by the worker's user"
        except FileNotFoundError:  # a link to nowhere
            wrong = "is missing"
        if wrong is not None:
            return f"{file.relative_to(folder)} {wrong}"
    return None


def _files(folder: Path) -> list[Path]:
    """List its own files and those of its parts."""
    try:
        top = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        return [file for path in top for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    except FileNotFoundError as error:
        raise Unfit(f"its folder '{folder.name}' does not exist") from error
    except NotADirectoryError as error:
        raise Unfit(f"its folder '{folder.name}' is a file") from error
    except PermissionError as error:
        raise Unfit(f"its folder '{folder.name}' may not be read by the worker's user") from error


def _object(folder: Path, file: Path) -> Mapping[str, Any]:
    name = file.relative_to(folder)
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise Unfit(f"{name} is missing") from error
    except PermissionError as error:
        raise Unfit(f"{name} may not be read by the worker's user") from error
    except ValueError as error:  # no UTF-8, or no JSON
        raise Unfit(f"{name} is no JSON") from error
    if not isinstance(found, dict):
        raise Unfit(f"{name} is no JSON object")
    return found


def _check_kind(index: Mapping[str, Any] | None, config: Mapping[str, Any], kind: Kind) -> None:
    where, found = (CONFIG, config.get("model_type")) if index is None else (INDEX, index.get("_class_name"))
    if isinstance(found, str) and found in kind.names:
        return
    if isinstance(found, list) or (index is None and "auto_map" in config):
        raise Unfit(OWN_CODE)
    said = f"is of the kind '{found}'" if found else f"does not say in {where} of which kind it is"
    raise Unfit(f"it {said}, and {kind.called} is wanted here")


def _parts(index: Mapping[str, Any]) -> dict[str, str]:
    """Name the parts and their classes, which the index has as `[library, class]`; of one that is left out, nulls."""
    return {part: str(of[-1]) for part, of in index.items() if isinstance(of, list) and of and of[-1] is not None}


def _check_tokenizer(part: str, names: Collection[str]) -> None:
    """Refuse one that the library would make up a vocabulary for, or not know the longest text of."""
    if not any(fnmatch(name, pattern) for name in names for pattern in VOCABULARIES):
        raise Unfit(f"{Path(part, TOKENIZER)} is missing")
    if part and "tokenizer_config.json" not in names:
        raise Unfit(f"{Path(part, 'tokenizer_config.json')} is missing")


def _wrong_with(file: Path) -> str | None:
    if file.name.endswith(SHARDS):
        return _wrong_with_shards(file)
    match file.suffix:
        case ".safetensors":
            return _wrong_with_tensors(file)
        case ".bin":
            return _wrong_with_pickle(file)
        case ".json":
            return _wrong_with_json(file)
    return None


def _wrong_with_json(file: Path) -> str | None:
    try:
        found = json.loads(file.read_bytes())
    except ValueError:
        return "is no JSON"
    is_whole = file.name != TOKENIZER or (isinstance(found, dict) and {"added_tokens", "model"} <= found.keys())
    return None if is_whole else "is no tokenizer"


def _wrong_with_shards(file: Path) -> str | None:
    try:
        named = sorted(set(json.loads(file.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        return "is no list of weight files"
    missing = [name for name in named if not (file.parent / name).exists()]
    return f"names {', '.join(missing)}, which is missing" if missing else None


def _wrong_with_tensors(file: Path) -> str | None:
    """Compare the header with the length.

    Source: safetensors' format: the header's length in 8 bytes, JSON, then the tensors without gaps.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = LENGTH_BYTES + int.from_bytes(opened.read(LENGTH_BYTES), "little")
        if size < start:
            return f"breaks off after {size} bytes, or its header is damaged"
        try:
            end = start + max(_ends(json.loads(opened.read(start - LENGTH_BYTES))), default=0)
        except (ValueError, KeyError, TypeError, AttributeError):
            return "has a damaged header"
    return None if size == end else f"has {size} bytes, where its header says {end}"


def _ends(header: Mapping[str, Any]) -> Iterator[int]:
    yield from (of["data_offsets"][1] for name, of in header.items() if name != "__metadata__")


def _wrong_with_pickle(file: Path) -> str | None:
    """Tell a file of torch's, which is a ZIP archive or an older one's pickle, from one that is none."""
    with file.open("rb") as opened:
        start = opened.read(2)
    is_whole = zipfile.is_zipfile(file) if start == b"PK" else start[:1] == b"\x80"
    return None if is_whole else "is damaged"
