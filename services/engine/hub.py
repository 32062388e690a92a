"""The hub's files of a pinned revision: fetched, kept, checked; knows no library that runs them.

Files come whole or not at all: who asks again goes on with those that are missing. A blob in the hub library's cache
is named by its digest, which is what it is checked against.
"""

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import constants, get_cached_repo_tree, get_session, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import tqdm

from services.engine.failures import chain, system_reason
from services.errors import ModelUnavailable
from services.registry import HubFiles

Tell = Callable[[int, int], None]  # bytes that are here, and bytes in all

CHUNK = 2**20  # bytes that are hashed at once
UNREACHED = re.compile(r"Got: \w*(Connect|Timeout|Network|Proxy)\w*:")  # where the library leaves the cause out
SHA1_LENGTH = 40  # hexadecimal digits: git's, of a small file; what is longer is SHA-256


def address(hub: HubFiles) -> str:
    """Where people find that revision."""
    return f"{constants.ENDPOINT}/{hub.repository}/tree/{hub.revision}"


def fetch(model_id: str, hub: HubFiles, tell: Tell | None = None, *, checks_all: bool = False) -> Path:
    """Bring the files of a pinned revision onto this machine, and return their folder.

    Nothing is asked of the hub where all are here. What comes new is checked.

    Args:
        model_id: what errors call it.
        hub: where they are, and which.
        tell: hears of every piece that has come.
        checks_all: whether to read also what has been here before.

    Raises:
        ModelUnavailable: they cannot be had: no network, no such revision, no room, or not what the hub says they are.
    """
    before = _blobs(hub)
    with _in_a_sentence(model_id, hub):
        try:
            folder = _snapshot(hub, local_files_only=True)
        except LocalEntryNotFoundError:
            if constants.is_offline_mode():
                raise
            _check_room(model_id, hub, before)
            _knock()
            folder = _snapshot(hub, tqdm_class=_bar(tell, hub) if tell else tqdm)
        _check(model_id, folder, _blobs(hub).keys() - (() if checks_all else before.keys()))
    return folder


def _knock() -> None:
    """Find out at once whether anybody is there: the library would try for half a minute, and other models wait.

    Raises:
        httpx2.TransportError: nobody is.
    """
    get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)


def _snapshot(hub: HubFiles, **options: Any) -> Path:
    found = snapshot_download(hub.repository, revision=hub.revision, allow_patterns=list(hub.files), **options)
    return Path(found)


@contextmanager
def _in_a_sentence(model_id: str, hub: HubFiles) -> Iterator[None]:
    where = f"{hub.repository} at {hub.revision[:7]}, {hub.size_gb} GB"
    hint = f"'atelier models pull {model_id}' fetches it where there is a network"
    try:
        yield
    except IncompleteSnapshotError as error:
        missing = ", ".join(_missing(Path(error.snapshot_path), hub)) or "some of its files"
        raise ModelUnavailable(f"model '{model_id}' ({where}) lacks {missing}; {hint}", retry_after=30) from error
    except (OSError, httpx2.TransportError) as error:  # the hub's own errors are OSErrors too
        said = f"model '{model_id}' could not be fetched from the hub ({where})"
        if lasting := _lasting(error):
            raise ModelUnavailable(f"{said}: {lasting}") from error
        because = _passing(error)
        if constants.is_offline_mode():
            because = f"{', '.join(hub.files)} are not here, and HF_HUB_OFFLINE is set"
        raise ModelUnavailable(f"{said}: {because}; {hint}", retry_after=30) from error


def _lasting(error: Exception) -> str | None:
    """Say what the operator has to do something about, if that is why."""
    for each in chain(error):
        match each:
            case GatedRepoError():
                return "its owners give it to those who accept their terms: do so on its page, then set HF_TOKEN"
            case RevisionNotFoundError():
                return "there is no such revision"
            case RepositoryNotFoundError():
                return "there is no such repository, or none that is shown without another HF_TOKEN"
            case HfHubHTTPError() if each.response.status_code in {401, 403}:
                return f"the hub refuses it ({each.response.status_code}); set HF_TOKEN to one that may read it"
    return system_reason(error)


def _passing(error: Exception) -> str:
    for each in chain(error):
        match each:
            case HfHubHTTPError():
                return f"it answers {each.response.status_code}"
            case httpx2.TransportError():
                return "it cannot be reached"
    said = getattr(error, "strerror", None) or str(error)
    if UNREACHED.search(said):
        return "it cannot be reached"
    return said.strip().partition("\n")[0].rstrip(".") or type(error).__name__


def _missing(folder: Path, hub: HubFiles) -> list[str]:
    return [path for path in _sizes(hub) if not (folder / path).is_file()]


def _sizes(hub: HubFiles) -> dict[str, int]:
    """Map its files to how many bytes each has, by the hub's list; empty where no list has been kept."""
    try:
        listed = get_cached_repo_tree(hub.repository, revision=hub.revision)
    except CachedRepoTreeNotFoundError:
        return {}
    return {file.path: file.size for file in listed if any(fnmatch(file.path, pattern) for pattern in hub.files)}


def _cache(hub: HubFiles) -> Path:
    return Path(constants.HF_HUB_CACHE).expanduser() / f"models--{hub.repository.replace('/', '--')}"


def _blobs(hub: HubFiles) -> dict[str, int]:
    """The names of what is here of a repository, and how many bytes each has."""
    folder = _cache(hub) / "blobs"
    if not folder.is_dir():
        return {}
    return {blob.name: blob.stat().st_size for blob in folder.iterdir() if blob.suffix != ".incomplete"}


def _check_room(model_id: str, hub: HubFiles, here: dict[str, int]) -> None:
    cache = Path(constants.HF_HUB_CACHE).expanduser()
    disk = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free, wanted = shutil.disk_usage(disk).free / 1e9, hub.size_gb - sum(here.values()) / 1e9
    if free < wanted:
        raise ModelUnavailable(
            f"model '{model_id}' takes {wanted:.1f} GB and the hub's cache has {free:.1f} GB free; "
            "make room, or let HF_HOME name another folder"
        )


def _check(model_id: str, folder: Path, names: AbstractSet[str]) -> None:
    """Compare files with the names of their blobs; where a disk knows no links there are none, and nothing is said."""
    for path in folder.rglob("*"):
        blob = path.resolve()
        if path.is_file() and blob.name in names and _digest(blob) != blob.name:
            blob.unlink()
            path.unlink()
            raise ModelUnavailable(
                f"model '{model_id}': {path.relative_to(folder)} is not what the hub says it is, and was deleted; "
                f"'atelier models pull {model_id}' fetches it again"
            )


def _digest(blob: Path) -> str:
    """The digest that the blob is named by."""
    digest = hashlib.sha256()
    if len(blob.name) == SHA1_LENGTH:
        digest = hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False)
    with blob.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _bar(tell: Tell, hub: HubFiles) -> type[tqdm]:
    """Make a bar that nobody sees, and that tells of the bytes on the disk.

    The library's own total has only the files that it has begun with.
    """

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})
            self._is_told = "Reconstructing" in (kwargs.get("desc") or "")  # not of those on their way as well
            if self._is_told:
                sizes = _sizes(hub)
                missing = _missing(_cache(hub) / "snapshots" / hub.revision, hub)
                self._num_wanted = sum(sizes.values())
                self._num_here = self._num_wanted - sum(sizes[path] for path in missing)
                self.update(0)

        def update(self, n: float | None = 1) -> None:
            if self._is_told:
                self._num_here += int(n or 0)  # a bar that is not shown does not count
                tell(self._num_here, self._num_wanted)

    return Bar
