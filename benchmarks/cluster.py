"""A cluster whose parts die, and what a second host brings: `python -m benchmarks.cluster`. Root, and Linux.

Three hosts (Ray's head, two for workers) and two gateways over one Postgres and one Redis, in namespaces of their own
(`benchmarks.hosts`). First a model that sleeps, on one host and on two. Then all modalities over the tiny checkpoints,
called by callers who wait and as jobs, while a worker host is cut off, a gateway is killed, and the head is killed. It
fails where an accepted job does not end well, where an error does not belong to what was dead, or where the rate does
not return.
"""

import argparse
import asyncio
import io
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml
from PIL import Image

from benchmarks.chaos import CHAT, ENDS, TASKS, accepted, is_success, until
from benchmarks.hosts import HERE, NETWORK, Host, go_inside, kill

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
HEAD, WORKERS, GATEWAYS = 1, (2, 3), (11, 12)  # numbers of hosts
SERVE, PORT, GCS = 8000, 8000, 6379
PATIENCE = 900  # seconds that are waited at most for anything
NOTICED = 8.0  # seconds in which a gateway surely has noticed that something does not answer
RETURNED = 0.8  # of the rate before, and it counts as returned
NUM_LOOKS = 6  # at the rate, until it has


def picture() -> bytes:
    """A small PNG."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "PNG")
    return file.getvalue()


CALLS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "text": ("POST", "/v1/chat/completions", {"json": CHAT}),
    "audio": ("GET", "/generate/audio?prompt=Hello.", {}),
    "image": ("GET", "/generate/image?prompt=a&size=64x64&num_inference_steps=4", {}),
    "video": ("POST", "/generate/video", {"files": {"image": ("a.png", picture())}, "data": {"num_frames": "4"}}),
    "mesh": ("GET", "/generate/3d?prompt=a&num_inference_steps=2", {}),
}


def say(words: str) -> None:
    """Print at once."""
    print(f"{time.strftime('%X')} {words}", flush=True)  # noqa: T201


class Servers:
    """Postgres and Redis, in the program's own namespace."""

    def __init__(self, folder: Path) -> None:
        """Start them; Postgres refuses to run as root."""
        data = folder / "postgres"
        shutil.chown(folder, "nobody")
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        programs = found[-1] if found else Path("/usr/bin")
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
        made: list[Path | str] = [
            programs / "initdb",
            "-D",
            data,
            "-U",
            "atelier",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-sync",
        ]
        subprocess.run(made, check=True, user="nobody", **quiet)
        with (data / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {NETWORK}.0/24 trust\n")
        where = ("-c", f"listen_addresses={HERE}", "-c", f"unix_socket_directories={folder}", "-c", "fsync=off")
        self._started = [
            subprocess.Popen([programs / "postgres", "-D", data, *where], user="nobody", **quiet),
            subprocess.Popen(["redis-server", "--bind", HERE, "--protected-mode", "no", "--save", ""], **quiet),
        ]
        self.postgres = f"postgresql+asyncpg://atelier@{HERE}:5432/postgres"
        self.redis = f"{HERE}:6379"
        until(PATIENCE, lambda: not subprocess.run([programs / "pg_isready", "-q", "-h", HERE]).returncode)


class System:
    """All of it."""

    def __init__(self, folder: Path) -> None:
        """Start Postgres, Redis, the gateways and Ray's head; no host for workers yet."""
        self._folder = folder
        self._servers = Servers(folder)
        token = secrets.token_hex(16)
        self._ray = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            "RAY_external_storage_namespace": "atelier",
            "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
            "RAY_agent_register_timeout_ms": "300000",
            "RAY_worker_register_timeout_seconds": "300",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "4000",
            "RAY_health_check_failure_threshold": "5",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "PATH": f"{BIN}:/usr/sbin:/usr/bin:/sbin:/bin",
            "ATELIER_DATA_DIR": str(ROOT / ".atelier"),
            "ATELIER_INTERNAL_TOKEN": token,
            "ATELIER_RECEIPTS_URL": f"http://{NETWORK}.{GATEWAYS[0]}:{PORT}/internal/receipts",
        }
        hosts = [f"http://{NETWORK}.{number}:{SERVE}" for number in WORKERS]
        self._gateway = {
            **{f"ATELIER_{task.upper()}_URL": ",".join(f"{host}/{task}" for host in hosts) for task in TASKS},
            "ATELIER_HOST": "0.0.0.0",
            "ATELIER_PORT": str(PORT),
            "ATELIER_DATABASE_URL": self._servers.postgres,
            "ATELIER_REDIS_URL": f"redis://{self._servers.redis}",
            "ATELIER_ARTEFACTS_URL": str(folder / "artefacts"),
            "ATELIER_DATA_DIR": str(folder),
            "ATELIER_ADMIN_KEY_FILE": str(folder / "admin.key"),
            "ATELIER_INTERNAL_TOKEN": token,
            "ATELIER_SIGNING_KEY": secrets.token_hex(32),
            "PATH": f"{BIN}:/usr/bin:/bin",
        }
        self._homes = {number: Host(number) for number in GATEWAYS}
        self._gateways: dict[int, subprocess.Popen[bytes]] = {}
        self.hosts: dict[int, Host] = {}
        self.urls = [f"http://{NETWORK}.{number}:{PORT}" for number in GATEWAYS]
        for number in GATEWAYS:
            self.start_gateway(number)
        for url in self.urls:
            until(PATIENCE, lambda url=url: is_success(f"{url}/livez"))  # type: ignore[misc]
        self.key = (folder / "admin.key").read_text().strip()
        self.start_head()

    def start_gateway(self, number: int) -> None:
        """Start one of the two, also again."""
        log = self._folder / f"gateway{number}.log"
        self._gateways[number] = self._homes[number].start(sys.executable, "-m", "gateway", log=log, **self._gateway)

    def kill_gateway(self, number: int) -> None:
        """End it by SIGKILL."""
        kill(self._gateways[number])

    def start_head(self) -> None:
        """Start Ray's head; what it knew is in Redis."""
        self.hosts[HEAD] = host = Host(HEAD)
        command = f"exec ray start --head --block --num-cpus=0 --port={GCS} --node-ip-address={host.address} \
            --object-store-memory=80000000 --include-dashboard=false"
        host.start(
            "sh", "-c", command, log=self._folder / "head.log", RAY_REDIS_ADDRESS=self._servers.redis, **self._ray
        )

    def start_host(self, number: int) -> None:
        """Start a host for workers: Ray again and again, as whoever looks after it would."""
        self.hosts[number] = host = Host(number)
        command = f"while :; do ray start --block --address={NETWORK}.{HEAD}:{GCS} --node-ip-address={host.address} \
            --num-cpus=5 --object-store-memory=80000000; sleep 1; done"
        host.start("sh", "-c", command, log=self._folder / f"host{number}.log", **self._ray)

    def deploy(self, config: dict[str, Any]) -> None:
        """Have Serve run what `config` says, instead of what it ran."""
        file = self._folder / "serve.yaml"
        file.write_text(yaml.safe_dump({**config, "http_options": {"host": "0.0.0.0", "port": SERVE}}))
        head = self.hosts[HEAD]
        address = {"RAY_ADDRESS": f"{head.address}:{GCS}"}
        log = self._folder / "deploy.log"
        for _ in range(30):
            if not head.start("serve", "run", "--non-blocking", str(file), log=log, **self._ray, **address).wait():
                return
            time.sleep(2)
        sys.exit(f"Serve cannot be told: see {log}")

    def is_ready(self, task: str, number: int) -> bool:
        """Whether a modality can be asked for at a host for workers."""
        return is_success(f"http://{NETWORK}.{number}:{SERVE}/{task}/readyz")


@dataclass
class Call:
    """What a caller has seen."""

    task: str
    gateway: int
    began: float
    seconds: float
    status: int  # 0: no answer
    code: str

    @property
    def ended(self) -> float:
        """When it was over."""
        return self.began + self.seconds


@dataclass(frozen=True)
class Fault:
    """When something was killed, when it was started again, when all was well, and how long was looked.

    Args:
        rate: of answers at the end.
    """

    what: str
    at: float
    mended: float
    whole: float
    end: float
    rate: float

    @property
    def is_of_gateway(self) -> bool:
        """Whether callers noticed it themselves."""
        return "gateway" in self.what


@dataclass
class Load:
    """Callers who wait, and jobs, until it is closed."""

    system: System
    calls: list[Call] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)

    async def caller(self, http: httpx.AsyncClient, task: str, first: int) -> None:
        """Ask again and again, each gateway in turn."""
        method, path, body = CALLS[task]
        number = first
        while True:
            number += 1
            gateway = number % len(GATEWAYS)
            began = time.monotonic()
            status, code = 0, "no_answer"
            try:
                answer = await http.request(method, self.system.urls[gateway] + path, **body)
                status, code = answer.status_code, ""
                if not answer.is_success:
                    with suppress(ValueError):
                        code = answer.json()["error"]["code"]
                    await asyncio.sleep(0.2)
            except httpx.HTTPError as error:
                code = type(error).__name__
                await asyncio.sleep(0.2)
            self.calls.append(Call(task, gateway, began, time.monotonic() - began, status, code))

    async def worker_jobs(self, http: httpx.AsyncClient, pause: float) -> None:
        """Have a job accepted by whichever gateway lives, again and again."""
        number = 0
        while True:
            self.jobs.append(await accepted(http, self.system.urls, number))
            number += 1
            await asyncio.sleep(pause)

    @asynccontextmanager
    async def running(self, num_callers: int, pause: float) -> AsyncIterator[None]:
        """Have callers and jobs inside."""
        limits = httpx.Limits(max_connections=None)
        headers = {"authorization": f"Bearer {self.system.key}"}
        async with httpx.AsyncClient(trust_env=False, timeout=60, limits=limits, headers=headers) as http:
            tasks = [
                asyncio.create_task(self.caller(http, task, number)) for task in TASKS for number in range(num_callers)
            ]
            tasks.append(asyncio.create_task(self.worker_jobs(http, pause)))
            yield
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def rate(self, since: float, until: float) -> float:
        """Answers a second."""
        ended = [call for call in self.calls if call.status == 200 and since <= call.ended < until]
        return len(ended) / (until - since)

    def errors(self, since: float, until: float) -> list[Call]:
        """Of calls that began then."""
        return [call for call in self.calls if call.status != 200 and since <= call.began < until]


async def asked_for(url: str, key: str, num_callers: int, seconds: float) -> float:
    """How many answers a second so many callers get of the model that sleeps."""
    number = 0

    async def one(http: httpx.AsyncClient) -> None:
        nonlocal number
        while True:
            answer = await http.post(f"{url}/v1/chat/completions", json=CHAT)
            answer.raise_for_status()
            number += 1

    headers = {"authorization": f"Bearer {key}"}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(trust_env=False, timeout=60, limits=limits, headers=headers) as http:
        tasks = [asyncio.create_task(one(http)) for _ in range(num_callers)]
        await asyncio.sleep(3)
        before, began = number, time.monotonic()
        await asyncio.sleep(seconds)
        rate = (number - before) / (time.monotonic() - began)
        for task in tasks:
            task.cancel()
        failed = [each for each in await asyncio.gather(*tasks, return_exceptions=True) if isinstance(each, Exception)]
        if failed:
            sys.exit(f"a caller failed: {failed[0]!r}")
    return rate


def scaling(system: System) -> float:
    """Print what a second host brings."""
    rates = []
    for num_hosts, number in enumerate(WORKERS, start=1):
        system.start_host(number)
        sleeper = {"name": "sleeper", "num_replicas": num_hosts, "max_replicas_per_node": 1}
        application = {"name": "text", "route_prefix": "/text", "import_path": "benchmarks.sleeper:application"}
        system.deploy({"proxy_location": "EveryNode", "applications": [{**application, "deployments": [sleeper]}]})
        until(PATIENCE, lambda number=number: system.is_ready("text", number))  # type: ignore[misc]
        time.sleep(6)  # until gateways and routers know all
        rates.append(asyncio.run(asked_for(system.urls[0], system.key, 32, 20)))
        say(f"a model that sleeps, {num_hosts} host(s): {rates[-1]:.2f} answers/s")
    say(f"two hosts over one: {rates[1] / rates[0]:.2f}")
    return rates[1] / rates[0]


def deploy_all(system: System) -> float:
    """Run the five services, once on each host; how many seconds it took until all were ready."""
    began = time.monotonic()
    config = yaml.safe_load((ROOT / "deploy/ray/serve.yaml").read_text())
    for application in config["applications"]:
        application["args"] |= {"min_replicas": 2, "max_replicas": 2, "num_cpus": 1}
        application["deployments"] = [{"name": "worker", "max_replicas_per_node": 1}]
    system.deploy(config)
    for number in WORKERS:
        for task in TASKS:
            until(PATIENCE, lambda task=task, number=number: system.is_ready(task, number))  # type: ignore[misc]
    return time.monotonic() - began


async def faults(system: System, load: Load, steady: float) -> bool:
    """Kill one after the other under load, and print what callers saw; whether all is as promised."""
    seen: list[Fault] = []
    async with load.running(num_callers=2, pause=1.0):
        await asyncio.sleep(8)
        began = time.monotonic()
        await asyncio.sleep(steady)
        before = load.rate(began, time.monotonic())
        say(f"before: {before:.2f} answers/s, {len(load.errors(began, time.monotonic()))} errors")
        for what, kill, mend, outage in (
            ("a worker host is cut off", system.hosts[WORKERS[1]].cut, system.hosts[WORKERS[1]].heal, 25.0),
            (
                "a gateway is killed",
                lambda: system.kill_gateway(GATEWAYS[0]),
                lambda: system.start_gateway(GATEWAYS[0]),
                6.0,
            ),
            ("the head is killed", system.hosts[HEAD].kill, system.start_head, 12.0),
        ):
            say(what)
            at = time.monotonic()
            await asyncio.to_thread(kill)
            await asyncio.sleep(outage)
            say("it comes back")
            mended = time.monotonic()
            await asyncio.to_thread(mend)
            await asyncio.to_thread(until, PATIENCE, lambda: is_whole(system))
            whole, rate = time.monotonic(), 0.0
            for _ in range(NUM_LOOKS):
                await asyncio.sleep(steady)
                rate = load.rate(time.monotonic() - steady, time.monotonic())
                if rate >= RETURNED * before:
                    break
            seen.append(Fault(what, at, mended, whole, time.monotonic(), rate))
    kept = [told(load, fault, before) for fault in seen]  # each is printed
    return all(kept)


def is_whole(system: System) -> bool:
    """Whether both gateways live and every modality can be asked for at both hosts."""
    live = all(is_success(f"{url}/livez") for url in system.urls)
    return live and all(system.is_ready(task, number) for number in WORKERS for task in TASKS)


def told(load: Load, fault: Fault, before: float) -> bool:
    """Print what callers saw of a fault; whether that is as promised.

    A host that was cut off ends itself when it is back, and what runs on it by then with it: `worker_died`.
    """

    def errors(since: float, until: float) -> list[Call]:
        # What ended later was under way at the next fault, and counts there. Whoever asks a gateway that is not there
        # is refused at once, and has the other to go to.
        found = [call for call in load.errors(since, until) if call.ended < fault.end]
        return [call for call in found if call.status or not fault.is_of_gateway or call.gateway]

    under_way = [call for call in load.calls if call.status != 200 and call.began < fault.at <= call.ended]
    unnoticed, later = errors(fault.at, fault.at + NOTICED), errors(fault.at + NOTICED, fault.end)
    say(fault.what)
    lost = [call for call in later if call.code == "worker_died" and call.ended > fault.mended]
    say(f"  errors: {len(under_way)} under way then, {len(unnoticed)} sent before it was noticed, {len(later)} later")
    say(f"  codes: {dict(Counter(call.code for call in [*under_way, *unnoticed, *later]))}")
    if lost:
        last = max(call.ended for call in lost) - fault.mended
        say(f"  {len(lost)} of the later were under way when it ended itself, up to {last:.1f} s after it was back")
    if unnoticed:
        say(f"  the last of those was sent {max(call.began for call in unnoticed) - fault.at:.1f} s after it")
    meanwhile = load.rate(fault.at, fault.mended)
    say(f"  answers/s: {before:.2f} before, {meanwhile:.2f} meanwhile, {fault.rate:.2f} after")
    say(f"  all was well {fault.whole - fault.mended:.0f} s after it came back")
    say(f"  the rate is of the last of {fault.end - fault.whole:.0f} s since")
    return len(later) == len(lost) and fault.rate >= RETURNED * before


def ended_well(system: System, load: Load) -> bool:
    """Print what became of the jobs."""
    headers = {"authorization": f"Bearer {system.key}"}
    with httpx.Client(base_url=system.urls[1], trust_env=False, timeout=60, headers=headers) as http:
        jobs: dict[str, dict[str, Any]] = {}

        def have_ended() -> bool:
            jobs.update(
                {
                    each: http.get(f"/v1/jobs/{each}").json()
                    for each in load.jobs
                    if each not in jobs or jobs[each]["status"] not in ENDS
                }
            )
            return all(job["status"] in ENDS for job in jobs.values())

        until(PATIENCE, have_ended)
    found = Counter(job["status"] for job in jobs.values())
    say(f"jobs accepted: {len(jobs)}; {dict(found)}, {sum(job['attempts'] for job in jobs.values())} attempts")
    for job in jobs.values():
        if job["error"]:
            say(f"  {job['kind']}: {job['error']['message']}")
    return found["completed"] == len(jobs)


def main() -> None:
    """Measure, and fail where a promise is broken."""
    go_inside("benchmarks.cluster")
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steady", type=float, default=25, help="seconds of load between two faults")
    options.add_argument("--only", choices=("scaling", "faults"))
    options.add_argument("--keep", type=Path, help="a folder for the logs; it is emptied")
    asked = options.parse_args()
    folder = asked.keep or Path(tempfile.mkdtemp(prefix="atelier-cluster-"))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    system = System(folder)
    say("two gateways, Postgres, Redis")
    is_good = True
    if asked.only == "faults":
        for number in WORKERS:
            system.start_host(number)
    else:
        is_good &= scaling(system) >= 1.8
    if asked.only != "scaling":
        say(f"all modalities at both hosts, {deploy_all(system):.0f} s after they were deployed")
        load = Load(system)
        is_good &= asyncio.run(faults(system, load, asked.steady))
        is_good &= ended_well(system, load)
    if asked.keep is None:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(0 if is_good else "a promise is broken")


if __name__ == "__main__":
    main()
