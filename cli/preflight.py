"""What would stop `atelier up`, found before anything is started and said in a line each."""

import errno
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import psutil

from cli.errors import Refused
from cli.settings import Settings
from services.registry import HubFiles, Model, Task

LIBRARIES: dict[Task, tuple[str, ...]] = {
    "text": ("bentoml", "torch", "transformers"),
    "audio": ("bentoml", "torch", "transformers", "av"),
    "image": ("bentoml", "torch", "transformers", "diffusers", "PIL"),
    "video": ("bentoml", "torch", "transformers", "diffusers", "PIL", "av"),
    "mesh": ("bentoml", "torch", "transformers", "diffusers", "PIL"),
}


def check(settings: Settings) -> None:
    """Look at the registry, libraries, folder, disk and ports.

    Raises:
        Refused: something has to change first; the message has a line for each.
    """
    models = settings.models
    problems = [*missing_libraries(settings), *unusable_folder(settings, models), *taken_ports(settings)]
    if problems:
        raise Refused("\n".join(problems))


def missing_libraries(settings: Settings) -> Iterator[str]:
    """Yield a line for each library that a worker needs and has not."""
    tasks: dict[str, list[str]] = {}
    for task in settings.worker_ports:
        for library in LIBRARIES[task]:
            tasks.setdefault(library, []).append(task)
    tasks["streamlit"] = ["ui"]
    for library, users in tasks.items():
        if find_spec(library) is None:
            yield f"{library} is missing ({', '.join(users)}): remove the folder .venv, and make up installs all anew"


def unusable_folder(settings: Settings, models: Sequence[Model]) -> Iterator[str]:
    """Yield a line where the data folder cannot be written, or a disk has too little room."""
    folder = settings.data_dir.absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "its disk is full" if full else (error.strerror or str(error)).lower()
        yield f"the data folder {folder} cannot be written ({reason}); ATELIER_DATA_DIR names another"
        return
    free = shutil.disk_usage(folder).free
    if free < settings.min_free_mb * 1e6:
        yield (
            f"the disk of {folder} has {free / 1e6:.0f} MB free and {settings.min_free_mb} MB are needed; "
            "ATELIER_DATA_DIR names another folder, ATELIER_MIN_FREE_MB another limit"
        )
    if settings.profile == "hub":
        yield from no_room_for_weights([model for model in models if model.task in settings.worker_ports], hub_cache())


def no_room_for_weights(models: Sequence[Model], cache: Path) -> Iterator[str]:
    """Yield a line where the weights that the workers download when they start do not fit."""
    wanted = missing_weights(models, cache)
    disk = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(disk).free / 1e9
    if free < wanted:
        yield f"the weights take {wanted:.1f} GB and {cache} has {free:.1f} GB free; HF_HOME names another folder"


def missing_weights(models: Iterable[Model], cache: Path) -> float:
    """Return how many 10⁹ bytes the preloaded of `models` have that were not downloaded yet."""
    wanted = [hub for model in models if model.is_preloaded_in("hub") for hub in model.hub_files.values()]
    return sum(hub.size_gb for hub in wanted if not is_cached(hub, cache))


def hub_cache() -> Path:
    """Return where huggingface_hub keeps what it downloads."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    return Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser().absolute()


def is_cached(hub: HubFiles, cache: Path) -> bool:
    """Whether the repository has been downloaded, in part at least."""
    return (cache / f"models--{hub.repository.replace('/', '--')}" / "snapshots" / hub.revision).exists()


def taken_ports(settings: Settings) -> Iterator[str]:
    """Yield a line for each port that somebody uses, or that two of ours would."""
    wanted = [("ATELIER_PORT", settings.host, settings.port)]
    for task, port in settings.worker_ports.items():
        wanted.append((f"ATELIER_{task.upper()}_PORT", "127.0.0.1", port))
    wanted.append(("ATELIER_UI_PORT", "127.0.0.1", settings.ui_port))
    seen: dict[int, str] = {}
    for setting, host, port in wanted:
        if port in seen:
            yield f"{seen[port]} and {setting} are both {port}"
        seen[port] = setting
        problem = why_not_listen(host, port)
        if problem:
            yield f"{problem}; {setting} sets another"


def why_not_listen(host: str, port: int) -> str | None:
    """Return why nothing of ours can listen there, or None."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return f"port {port} is taken{taker(port)}"
        return f"port {port} of {host} cannot be listened on ({(error.strerror or str(error)).lower()})"
    return None


def taker(port: int) -> str:
    """Return who listens on the port, where the system tells."""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            listens = connection.status == psutil.CONN_LISTEN
            if listens and connection.laddr and connection.laddr.port == port and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (process {connection.pid})"
    except psutil.Error:
        pass  # only an administrator may ask
    return ""
