"""`atelier up` and `down`: workers and gateway on this machine, watched over until told to stop."""

import asyncio
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from secrets import token_urlsafe
from types import MappingProxyType

import httpx
import psutil
import typer

import services
from cli import family
from cli.child import Program
from cli.errors import Refused
from cli.preflight import check
from cli.settings import Settings
from cli.supervisor import Supervisor
from services.registry import WORKERS, local_models_of

FILES = tuple(f"ATELIER_{name}_FILE" for name in ("ADMIN_KEY", "MODELS", "PRICES", "POLICY", "PROVIDERS"))
UPLOADS = "ATELIER_MAX_UPLOAD_BYTES"
ROOT = Path(services.__file__).parent.parent  # where the modules are that `bentoml serve` is told to load
PATIENCE_SECONDS = 10.0  # between two signs of life while the user waits
LONG_WAIT_SECONDS = 60.0
PICTURE = "a large red circle above a small blue square on a white background"


def up(settings: Settings) -> None:
    """Serve until told to stop.

    Raises:
        CommandError: something stands in the way.
    """
    started = time.monotonic()
    check_folder_is_free(settings.data_dir)
    check(settings)
    with pid_file(settings.data_dir):
        if settings.profile == "tiny":
            build_checkpoints(settings)
        asyncio.run(serve(settings, started))


async def serve(settings: Settings, started: float) -> None:
    """Run everything, and say what is ready."""
    (settings.data_dir / "logs").mkdir(exist_ok=True)
    supervisor = Supervisor(programs(settings, shared(settings)), typer.echo, settings.stop_seconds)
    names = ", ".join(program.name for program in supervisor.programs)
    typer.echo(f"Starting {names}; their logs are in {settings.data_dir / 'logs'}")
    announcement = asyncio.create_task(announce(supervisor, settings, started))
    try:
        await supervisor.run()
    finally:
        announcement.cancel()
    typer.echo("Stopped.")


async def announce(supervisor: Supervisor, settings: Settings, started: float) -> None:
    """Say what is waited for, and in the end what is ready."""
    while not supervisor.settled.is_set():
        try:
            await asyncio.wait_for(supervisor.settled.wait(), PATIENCE_SECONDS)
        except TimeoutError:
            if not supervisor.stopping.is_set():
                seconds = time.monotonic() - started
                hint = "; what they do is in their logs" if seconds > LONG_WAIT_SECONDS else ""
                typer.echo(f"Still waiting for {', '.join(sorted(supervisor.waiting_for))} ({seconds:.0f} s{hint})")
    ports = {task: port for task, port in settings.worker_ports.items() if task not in supervisor.failures}
    async with httpx.AsyncClient(trust_env=False, timeout=5) as http:
        setbacks = {name: why for port in ports.values() for name, why in (await setbacks_at(port, http)).items()}
    typer.echo(summary(settings, time.monotonic() - started, supervisor.failures, setbacks))


async def setbacks_at(port: int, http: httpx.AsyncClient) -> dict[str, str]:
    """The models that the worker there cannot serve, and why; none where it does not say."""
    try:
        models = (await http.get(f"{worker_url(port)}/v1/models")).raise_for_status().json()["data"]
    except httpx.HTTPError:
        return {}
    return {model["id"]: model["failure"] for model in models if model["state"] == "failed"}


def summary(
    settings: Settings, seconds: float, failures: Mapping[str, str], setbacks: Mapping[str, str] = MappingProxyType({})
) -> str:
    """What is served where, and how to try and to stop it.

    Args:
        settings: of this run.
        seconds: that it took.
        failures: the programs that cannot serve, and why.
        setbacks: the models that cannot be served although their worker can serve others, and why.
    """
    url = gateway_url(settings)
    state = "is ready" if not failures else f"runs without {', '.join(failures)}"
    lines = [f"\nAtelier {state} after {seconds:.1f} s: {url} (its pages: {url}/docs)"]
    if "ui" not in failures:
        lines.append(f"  ui     the studio, in a browser          {worker_url(settings.ui_port)}")
    for task, port in settings.worker_ports.items():
        for model in local_models_of(task, settings.models):
            loading = "" if model.is_preloaded_in(settings.profile) else ", loads when first asked for"
            state = ", not ready" if task in failures else ", cannot be served" if model.id in setbacks else loading
            lines.append(f"  {task:<6} {model.id:<32} http://127.0.0.1:{port}{state}")
    for model in settings.models:
        if model.external is not None:
            lines.append(f"  {model.task:<6} {model.id:<32} {model.external.url}, elsewhere")
    lines.extend(f"\n{task} cannot serve: {failure}" for task, failure in failures.items())
    lines.extend(f"\n{model} cannot be served: {setback}" for model, setback in setbacks.items())
    if settings.profile == "tiny":
        lines.append(
            "\nThe models chat, shapes and moves are tiny and trained; what the others make is noise."
            " ATELIER_PROFILE=hub has real ones."
        )
    curl = "curl -G"
    if settings.admin_key_file is not None:
        lines.append(f"\nA key is asked for: the operator's is in {settings.admin_key_file}")
        curl += f""" -H "x-api-key: $(cat '{settings.admin_key_file}')\""""
    lines.append("\nTry:")
    lines.append(f"  {curl} '{url}/generate/text' --data-urlencode 'prompt=What is Atelier?'")
    lines.append(f"  {curl} '{url}/generate/image' --data-urlencode 'prompt={PICTURE}' -o image.png")
    lines.append(f"  {curl} '{url}/generate/audio' --data-urlencode 'prompt=Good evening.' -o speech.wav")
    lines.append("\nCtrl-C stops everything; so does make down, from another terminal.")
    return "\n".join(lines)


def gateway_url(settings: Settings) -> str:
    """Return the gateway's URL as seen from this machine."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104  recognised, not bound
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def shared(settings: Settings) -> dict[str, str]:
    """Return what gateway and workers know each other by in this run; what the user has set stays."""
    return {
        "ATELIER_INTERNAL_TOKEN": os.environ.get("ATELIER_INTERNAL_TOKEN", token_urlsafe(32)),
        "ATELIER_RECEIPTS_URL": os.environ.get("ATELIER_RECEIPTS_URL", f"{gateway_url(settings)}/internal/receipts"),
    }


def programs(settings: Settings, shared: Mapping[str, str] | None = None) -> list[Program]:
    """Return the workers that run here, the gateway in front of them, and the web pages in front of that."""
    data_dir = settings.data_dir.absolute()
    ours = {
        **os.environ,
        **(shared or {}),
        "ATELIER_DATA_DIR": str(data_dir),
        "ATELIER_PROFILE": settings.profile,
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_CONTAINERIZED": "true",  # a dead inner process is this supervisor's to replace, not BentoML's
    }
    for name in FILES:
        if ours.get(name):
            ours[name] = str(Path(ours[name]).absolute())  # what is started looks from another folder
    ours.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # two busy workers: threads that spin while they wait halve both
    if settings.profile == "tiny":
        ours["HF_HUB_OFFLINE"] = "1"
        ours.setdefault("OMP_NUM_THREADS", "1")  # a tiny network is through sooner than a second thread is awake
    urls = {f"ATELIER_{task.upper()}_URL": worker_url(port) for task, port in settings.worker_ports.items()}
    found = [
        Program(
            name=task,
            command=serve_command(WORKERS[task].target, port),
            environment={**ours, "BENTOML_HOME": str(data_dir / "bentoml" / task)},
            folder=ROOT,
            log=data_dir / "logs" / f"{task}.log",
            ready_url=f"{worker_url(port)}/readyz",
            works_inside=True,
        )
        for task, port in settings.worker_ports.items()
    ]
    gateway = Program(
        name="gateway",
        command=(sys.executable, "-m", "gateway"),
        environment={**ours, **urls},
        folder=ROOT,
        log=data_dir / "logs" / "gateway.log",
        ready_url=f"{gateway_url(settings)}/livez",  # its /readyz asks the workers, who are asked here already
    )
    return [*found, gateway, studio(settings, ours)]


def studio(settings: Settings, ours: Mapping[str, str]) -> Program:
    """Return the web pages' server: it asks with its visitors' keys, and gets no secret of this machine's."""
    public = {name: value for name, value in ours.items() if not name.startswith("ATELIER_") or name == UPLOADS}
    port = settings.ui_port
    return Program(
        name="ui",
        command=(sys.executable, "-m", "ui"),
        environment={**public, "ATELIER_URL": gateway_url(settings), "ATELIER_UI_PORT": str(port)},
        folder=ROOT,
        log=settings.data_dir.absolute() / "logs" / "ui.log",
        ready_url=f"{worker_url(port)}/_stcore/health",
    )


def become_worker(settings: Settings, task: str) -> None:
    """Become the worker of `task`, alone in the foreground, as `up` would start it; does not return.

    Raises:
        Refused: there is no such worker here.
    """
    program = next((program for program in programs(settings) if program.name == task and task in WORKERS), None)
    if program is None:
        raise Refused(f"there is no worker '{task}' to start here; there are: {', '.join(settings.worker_ports)}")
    Path(program.environment["BENTOML_HOME"]).mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in program.environment.items() if name != "BENTOML_CONTAINERIZED"}
    os.execve(program.command[0], program.command, environment)  # noqa: S606  our own command, and no shell


def worker_url(port: int) -> str:
    """Return where a worker of this machine is."""
    return f"http://127.0.0.1:{port}"


def serve_command(target: str, port: int) -> tuple[str, ...]:
    """Return the documented way to run one worker; it keeps connections longer than the gateway does."""
    options = ("--host", "127.0.0.1", "--port", str(port), "--timeout-keep-alive", "75", "--working-dir", str(ROOT))
    return (sys.executable, "-m", "bentoml", "serve", target, *options)


def build_checkpoints(settings: Settings) -> None:
    """Build the tiny checkpoints that are missing, in a process of its own: torch is large.

    Raises:
        Refused: it failed; its own words were printed.
    """
    root = settings.data_dir.absolute() / "tiny"
    if not root.exists():
        typer.echo("Building the tiny checkpoints (once, about 20 s)")
    command = [sys.executable, "-m", "services.tiny", "--root", str(root)]
    built = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if built.returncode:
        last_line = (built.stdout.strip().splitlines() or ["no reason given"])[-1]
        raise Refused(f"the tiny checkpoints cannot be built: {last_line}")


@contextmanager
def pid_file(data_dir: Path) -> Iterator[None]:
    """Hold the lock that says that this data folder is served, with the number of this process in it."""
    with (data_dir / "up.pid").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Refused(f"Atelier is running already in {data_dir}; make down ends it") from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def check_folder_is_free(data_dir: Path) -> None:
    """Refuse where an `atelier up` runs in this folder: its ports are taken too, but that says less.

    Raises:
        Refused: one does.
    """
    running = running_up(data_dir)
    if running:
        raise Refused(f"Atelier is running already in {data_dir} (process {running.pid}); make down ends it")


def running_up(data_dir: Path) -> psutil.Process | None:
    """Return the process that serves this data folder: the one that holds the lock."""
    try:
        with (data_dir / "up.pid").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return psutil.Process(int(file.read()))
    except (OSError, psutil.NoSuchProcess):
        pass  # there is no such file, or what it named has just ended
    return None


def down(settings: Settings) -> None:
    """End the `atelier up` of this data folder and wait until it is gone.

    Raises:
        Refused: it does not end.
    """
    running = running_up(settings.data_dir)
    if running is None:
        typer.echo(f"Nothing runs in {settings.data_dir}.")
        return
    family.terminate(running)
    deadline = time.monotonic() + settings.stop_seconds + 5
    while family.is_alive(running):  # psutil's wait would wait for its parent too
        if time.monotonic() > deadline:
            raise Refused(f"process {running.pid} does not end; kill -9 {running.pid} makes it")
        time.sleep(0.1)
    typer.echo("Stopped.")
