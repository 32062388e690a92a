"""What `atelier up` and `down` say and decide before and after the processes, which tests/live starts for real."""

import asyncio
import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from cli.preflight import missing_weights
from cli.settings import Settings
from cli.up import programs, setbacks_at, shared, summary
from services.registry import load_models, models_of
from tests.cli.supervise import ROOT

ONLY_HELD = """
import sys, time
from pathlib import Path
from cli.up import pid_file
with pid_file(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def atelier(data_dir: Path, command: str, prelude: str = "", **settings: object) -> subprocess.CompletedProcess[str]:
    """Run a command as a user would; `prelude` is Python that runs before it."""
    environment = {f"ATELIER_{name.upper()}": str(value) for name, value in settings.items()}
    return subprocess.run(
        [
            sys.executable,
            "-c",
            f"{prelude}\nimport sys; sys.argv[1:] = ['{command}']\nfrom cli.main import main; main()",
        ],
        cwd=ROOT,
        env={**os.environ, "ATELIER_DATA_DIR": str(data_dir), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """What a command printed that stopped before it did anything: lines of its own, no traceback."""
    assert done.returncode == 1
    assert done.stdout == ""
    assert all(line.startswith("atelier: ") for line in done.stderr.splitlines())
    return done.stderr


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_taken_port_names_its_user_and_its_setting(tmp_path: Path, taken_port: int) -> None:
    line = refusal(atelier(tmp_path, "up", image_port=taken_port))
    assert f"port {taken_port} is taken by {psutil.Process().name()} (process {os.getpid()})" in line
    assert "ATELIER_IMAGE_PORT" in line


def test_two_settings_with_one_port_are_refused(tmp_path: Path, taken_port: int) -> None:
    line = refusal(atelier(tmp_path, "up", text_port=taken_port, mesh_port=taken_port))
    assert f"ATELIER_TEXT_PORT and ATELIER_MESH_PORT are both {taken_port}" in line


def test_an_address_of_another_machine_is_refused(tmp_path: Path) -> None:
    assert "203.0.113.1 cannot be listened on" in refusal(atelier(tmp_path, "up", host="203.0.113.1"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = refusal(atelier(tmp_path / "file" / "data", "up"))
    assert f"the data folder {tmp_path / 'file' / 'data'} cannot be written" in line
    assert "ATELIER_DATA_DIR" in line


def test_a_full_disk_is_refused_before_anything_starts(tmp_path: Path) -> None:
    line = refusal(atelier(tmp_path, "up", min_free_mb=10**12))
    assert "MB free and 1000000000000 MB are needed" in line
    assert not (tmp_path / "logs").exists()


def test_room_is_needed_for_weights_that_are_not_there(tmp_path: Path) -> None:
    models = load_models(profile="hub")
    everything = missing_weights(models, tmp_path)
    text = models_of("text", models)
    hub = text[0].hub
    assert hub is not None
    name = f"models--{hub.repository.replace('/', '--')}"
    (tmp_path / name / "snapshots" / hub.revision).mkdir(parents=True)
    assert missing_weights(text, tmp_path) == 0
    assert missing_weights(models, tmp_path) == pytest.approx(everything - hub.size_gb)


def test_a_registry_that_does_not_fit_is_named_before_anything_starts(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text('[[models]]\nid = "mine"\ntask = "image"\n', encoding="utf-8")

    assert refusal(atelier(tmp_path, "up", models_file=file)) == (
        f"atelier: ATELIER_MODELS_FILE: {file}: 'mine': a model comes from one place: hub, folder or external\n"
    )
    assert not (tmp_path / "logs").exists()


def test_a_missing_library_is_named_with_who_needs_it(tmp_path: Path) -> None:
    line = refusal(atelier(tmp_path, "up", "import sys; sys.modules['diffusers'] = None"))
    assert "diffusers is missing (image, video, mesh): remove the folder .venv, and make up installs all anew" in line


def test_a_value_that_does_not_fit_names_its_variable(tmp_path: Path) -> None:
    assert "ATELIER_PORT: " in refusal(atelier(tmp_path, "up", port=99_999))


def test_a_folder_is_served_once(tmp_path: Path) -> None:
    with (tmp_path / "up.pid").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(str(os.getpid()))
        file.flush()
        line = refusal(atelier(tmp_path, "up"))
    assert f"Atelier is running already in {tmp_path} (process {os.getpid()})" in line


def test_down_ends_what_up_started(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ONLY_HELD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout
        assert running.stdout.readline() == "held\n"
        assert atelier(tmp_path, "down").stdout == "Stopped.\n"
        assert running.poll() is not None


def test_down_touches_nothing_that_only_has_an_old_number(tmp_path: Path) -> None:
    (tmp_path / "up.pid").write_text(str(os.getpid()))
    assert atelier(tmp_path, "down").stdout == f"Nothing runs in {tmp_path}.\n"


def test_the_gateway_is_told_where_the_workers_are(tmp_path: Path) -> None:
    *workers, gateway, _ = programs(Settings(data_dir=tmp_path, image_port=4444))
    assert [worker.name for worker in workers] == ["text", "audio", "image", "video", "mesh"]
    assert gateway.environment["ATELIER_IMAGE_URL"] == "http://127.0.0.1:4444"
    assert len({worker.environment["BENTOML_HOME"] for worker in workers}) == 5


def test_gateway_and_workers_share_a_token_that_is_another_in_each_run(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, port=4567)
    runs = [programs(settings, shared(settings))[:-1] for _ in range(2)]
    tokens = [{program.environment["ATELIER_INTERNAL_TOKEN"] for program in run} for run in runs]

    assert [len(found) for found in tokens] == [1, 1]
    assert tokens[0] != tokens[1]
    assert all(len(token) >= 32 for found in tokens for token in found)
    assert runs[0][0].environment["ATELIER_RECEIPTS_URL"] == "http://127.0.0.1:4567/internal/receipts"
    assert not any(part in tokens[0] for program in runs[0] for part in program.command)


def test_a_token_that_the_user_has_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_INTERNAL_TOKEN", "theirs")
    settings = Settings(data_dir=tmp_path)

    *ours, _ = programs(settings, shared(settings))
    assert {one.environment["ATELIER_INTERNAL_TOKEN"] for one in ours} == {"theirs"}


def test_a_worker_alone_works_for_anybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATELIER_INTERNAL_TOKEN", raising=False)

    assert "ATELIER_INTERNAL_TOKEN" not in programs(Settings(data_dir=tmp_path))[0].environment


def test_a_worker_that_runs_elsewhere_is_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_VIDEO_URL", "http://gpu-2:3004")
    *workers, gateway, _ = programs(Settings(data_dir=tmp_path))
    assert [worker.name for worker in workers] == ["text", "audio", "image", "mesh"]
    assert gateway.environment["ATELIER_VIDEO_URL"] == "http://gpu-2:3004"


def test_a_worker_whose_models_others_serve_is_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "models.toml"
    elsewhere = '[models.external]\nurl = "http://gpu-2:3003"\n'
    entries = [f'[[models]]\nid = "{name}"\ntask = "image"\n{elsewhere}' for name in ("shapes", "tiny-sd")]
    file.write_text("".join(entries), encoding="utf-8")
    settings = Settings(data_dir=tmp_path, models_file=file)

    assert [program.name for program in programs(settings)] == ["text", "audio", "video", "mesh", "gateway", "ui"]
    [line] = [line for line in summary(settings, seconds=1, failures={}).splitlines() if "tiny-sd" in line]
    assert line.split() == ["image", "tiny-sd", "http://gpu-2:3003,", "elsewhere"]


def test_the_operators_key_is_named_and_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_ADMIN_KEY_FILE", "admin.key")
    monkeypatch.chdir(tmp_path)
    settings = Settings(data_dir=tmp_path)
    text = summary(settings, seconds=1, failures={})
    assert "the operator's is in admin.key" in text
    assert """curl -G -H "x-api-key: $(cat 'admin.key')" 'http://127.0.0.1:8000/generate/text'""" in text
    assert programs(settings)[-2].environment["ATELIER_ADMIN_KEY_FILE"] == str(tmp_path / "admin.key")


def test_the_studio_gets_the_gateways_address_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for secret in ("ADMIN_KEY_FILE", "API_KEY", "OPENAI_API_KEY", "SIGNING_KEY", "DATABASE_URL"):
        monkeypatch.setenv(f"ATELIER_{secret}", "secret")
    settings = Settings(data_dir=tmp_path, port=4567, ui_port=4568)
    studio = programs(settings, shared(settings))[-1]

    assert studio.ready_url == "http://127.0.0.1:4568/_stcore/health"
    ours = {name: value for name, value in studio.environment.items() if name.startswith("ATELIER_")}
    assert ours == {"ATELIER_URL": "http://127.0.0.1:4567", "ATELIER_UI_PORT": "4568"}
    assert "http://127.0.0.1:4568" in summary(settings, seconds=1, failures={})


@pytest.mark.parametrize(
    ("profile", "is_said", "prompt"),
    [
        ("tiny", True, "a large red circle above a small blue square on a white background"),
        ("hub", False, "A lighthouse in the fog"),
    ],
)
def test_noise_is_called_noise_and_a_model_is_tried_with_what_it_knows(
    tmp_path: Path, profile: str, is_said: bool, prompt: str
) -> None:
    settings = Settings.model_validate({"data_dir": tmp_path, "profile": profile, "host": "::"})
    text = summary(settings, seconds=1, failures={})
    assert "cannot serve" not in text
    assert ("noise" in text) == is_said
    assert f"http://127.0.0.1:8000/generate/image' --data-urlencode 'prompt={prompt}' -o image.png" in text
    assert ("Tiny and trained: chat, letters, shapes, " in text) == is_said


def test_the_summary_says_who_cannot_serve_and_why(tmp_path: Path) -> None:
    text = summary(Settings(data_dir=tmp_path), seconds=1, failures={"audio": "the hub is away"})
    assert "audio cannot serve: the hub is away" in text
    assert [line.split()[0] for line in text.splitlines() if line.endswith("not ready")] == ["audio", "audio"]


def test_a_model_that_cannot_be_served_is_not_listed_as_if_it_were(tmp_path: Path) -> None:
    barred = "accept the licence of model 'shap-e'"
    models = [{"id": "shap-e", "state": "failed", "failure": barred}, {"id": "other", "state": "cold", "failure": None}]

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"data": models})

    async def asked() -> dict[str, str]:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
            return await setbacks_at(3005, http)

    setbacks = asyncio.run(asked())
    text = summary(Settings(data_dir=tmp_path), seconds=1, failures={}, setbacks=setbacks)

    assert [line.split()[1] for line in text.splitlines() if line.endswith("cannot be served")] == ["shap-e"]
    assert f"shap-e cannot be served: {barred}" in text


@pytest.mark.parametrize(("profile", "threads"), [("tiny", "1"), ("hub", None)])
def test_tiny_networks_run_on_one_thread_each_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: str, threads: str | None
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    settings = Settings.model_validate({"data_dir": tmp_path, "profile": profile})
    assert {program.environment.get("OMP_NUM_THREADS") for program in programs(settings)} == {threads}

    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert {program.environment["OMP_NUM_THREADS"] for program in programs(settings)} == {"4"}
