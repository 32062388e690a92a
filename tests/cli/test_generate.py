"""`atelier chat`, `speak`, `draw`, `film`, `sculpt`, `models`: real processes, a gateway, workers that play along."""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cli.supervise import ROOT
from tests.gateway.conftest import LONG, Gateway, Workers, opened, start, workers
from tests.gateway.test_jobs import FILES, a_file, ended, sent, until, works

__all__ = ["start", "workers"]  # fixtures
Done = subprocess.CompletedProcess[bytes]
COMMAND = (sys.executable, "-m", "cli")


@pytest.fixture
def gateway(start: Callable[..., Gateway]) -> Gateway:
    return start()


@pytest.fixture
def environment(gateway: Gateway) -> dict[str, str]:
    python_path = {"PYTHONPATH": str(ROOT)}
    return {**os.environ, **python_path, "ATELIER_URL": gateway.url, "ATELIER_API_KEY": "", "COLUMNS": "120"}


@pytest.fixture
def atelier(environment: dict[str, str], tmp_path: Path) -> Callable[..., Done]:
    """Run a command in a folder of its own, with something piped in."""

    def run(*arguments: str, piped: bytes = b"") -> Done:
        return subprocess.run(
            [*COMMAND, *arguments],
            env=environment,
            cwd=tmp_path,
            input=piped,
            capture_output=True,
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture
def begun(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    """Begin a command."""
    processes = []

    def begin(*arguments: str) -> "subprocess.Popen[bytes]":
        streams: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen([*COMMAND, *arguments], env=environment, cwd=tmp_path, **streams))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def said(*words: str, done: bool = True) -> bytes:
    chunks = [{"choices": [{"index": 0, "delta": {"content": word}}]} for word in words]
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n" * done


def says(workers: Workers, *pieces: Any) -> None:
    workers.streams_once(*pieces, content_type="text/event-stream")


def asked(workers: Workers, number: int = -1) -> Any:
    return json.loads(workers.requests[number].content)


def complaint(done: Done, status: int = 1) -> str:
    assert done.returncode == status, done.stderr
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("atelier: ")
    return line


# --- chat ---


def test_a_prompt_is_answered_as_it_is_written(
    workers: Workers, begun: Callable[..., "subprocess.Popen[bytes]"]
) -> None:
    gate: Future[None] = Future()
    says(workers, said("Once ", done=False), opened(gate), said("more."))
    process = begun("chat", "Tell", "me", "--system", "Be brief.", "--seed", "5", "--max-tokens", "9")

    assert process.stdout is not None
    assert os.read(process.stdout.fileno(), 100) == b"Once "
    gate.set_result(None)
    assert process.communicate(timeout=LONG)[0] == b"more.\n"
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me"}]
    assert asked(workers) == {"seed": 5, "max_tokens": 9, "messages": turns, "stream": True}


def test_what_is_piped_in_comes_behind_the_words(workers: Workers, atelier: Callable[..., Done]) -> None:
    says(workers, said("Yes.\n"))
    done = atelier("chat", "Is this short?", piped="a résumé\n".encode())

    assert (done.returncode, done.stdout) == (0, b"Yes.\n")
    assert asked(workers)["messages"][0]["content"] == "Is this short?\n\na résumé"


def test_json_is_the_whole_answer(workers: Workers, atelier: Callable[..., Done]) -> None:
    workers.streams_once(b'{"id": "a", "choices": []}', content_type="application/json")
    assert json.loads(atelier("chat", "--json", "Hello").stdout) == {"id": "a", "choices": []}


def test_a_conversation_goes_on_from_what_was_said(workers: Workers, environment: dict[str, str]) -> None:
    says(workers, said("Hello."))
    ours, theirs = pty.openpty()
    with subprocess.Popen([*COMMAND, "chat"], env=environment, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        screen = b""

        def shows(words: bytes) -> None:
            nonlocal screen
            while words not in screen:
                screen += os.read(ours, 1000)
            screen = screen.partition(words)[2]

        shows(b"> ")
        os.write(ours, b"Hi\n")
        shows(b"Hello.")
        shows(b"> ")
        says(workers, said("one", done=False), opened(Future()))
        os.write(ours, b"Count\n")
        shows(b"one")
        process.send_signal(signal.SIGINT)  # ends the answer, not the chat
        shows(b"forgotten")
        shows(b"> ")
        says(workers, said("Fine."))
        os.write(ours, b"How are you?\n")
        shows(b"Fine.")
        shows(b"> ")
        os.write(ours, b"\x04")
        assert process.wait(LONG) == 0
    os.close(ours)

    contents = [turn["content"] for turn in asked(workers)["messages"]]
    assert contents == ["Hi", "Hello.", "How are you?"]


def test_an_answer_that_breaks_off_is_no_success(workers: Workers, atelier: Callable[..., Done]) -> None:
    says(workers, said("half", done=False), httpx.ReadError("killed"))
    done = atelier("chat", "Hello")

    assert done.stdout == b"half\n"
    assert "went away while it worked" in complaint(done)


# --- sounds and pictures ---


def makes(workers: Workers, *events: Any) -> None:
    workers.streams_once(*events, content_type="text/event-stream", x_seed="7", x_model="a-model")


def test_sound_goes_to_standard_output_as_it_is_made(
    workers: Workers, begun: Callable[..., "subprocess.Popen[bytes]"]
) -> None:
    gate: Future[None] = Future()
    first, second = (sent("output", media_type="audio/wav", b64=word) for word in ("Zmlyc3Q=", "c2Vjb25k"))
    makes(workers, sent("started"), first, opened(gate), second + sent("done"))
    process = begun("speak", "Good evening", "-o", "-", "--format", "wav", "--speed", "2")

    assert process.stdout is not None
    assert os.read(process.stdout.fileno(), 100) == b"first"
    gate.set_result(None)
    assert process.communicate(timeout=LONG)[0] == b"second"
    assert asked(workers) == {"input": "Good evening", "response_format": "wav", "speed": 2.0}


def test_a_picture_is_a_file_with_its_sketches_beside_it(
    workers: Workers, atelier: Callable[..., Done], tmp_path: Path
) -> None:
    sketch = sent("progress", step=1, steps=2, eta_seconds=1.0) + sent("preview", step=1, b64="eA==")
    makes(workers, sketch, a_file("image", "image/webp", b"WEBP"), sent("done"))
    done = atelier("draw", "a cat", "-o", "cat.webp", "--previews", "sketches", "--json")

    assert json.loads(done.stdout) == {
        "files": ["cat.webp"],
        "previews": ["sketches/cat-preview-1.jpg"],
        "model": "a-model",
        "seed": 7,
    }
    assert (tmp_path / "cat.webp").read_bytes() == b"WEBP"
    assert (tmp_path / "sketches" / "cat-preview-1.jpg").read_bytes() == b"x"
    assert asked(workers) == {"prompt": "a cat", "output_format": "webp"}


def test_several_pictures_are_several_files(workers: Workers, atelier: Callable[..., Done], tmp_path: Path) -> None:
    makes(workers, a_file("image", "image/png", b"ONE!"), a_file("image-2", "image/png", b"TWO!"), sent("done"))
    done = atelier("draw", "a cat", "-n", "2")

    assert done.stdout.decode().split() == ["picture-1.png", "picture-2.png"]
    assert [(tmp_path / f"picture-{each}.png").read_bytes() for each in (1, 2)] == [b"ONE!", b"TWO!"]


def test_other_servers_that_know_no_events_will_do(
    workers: Workers, atelier: Callable[..., Done], tmp_path: Path
) -> None:
    workers.streams_once(b'{"data": [{"b64_json": "UE5H"}]}', content_type="application/json")
    atelier("draw", "a cat")
    workers.streams_once(b"ID3", content_type="audio/mpeg")
    atelier("speak", "a cat")

    assert (tmp_path / "picture.png").read_bytes() == b"PNG"
    assert (tmp_path / "speech.mp3").read_bytes() == b"ID3"
    workers.streams_once(b"<html>", content_type="text/html")
    assert "is none of the kind" in complaint(atelier("draw", "a cat", "--force"))


@pytest.mark.parametrize("command", [("draw", "a", "-o", "it.png"), ("sculpt", "a", "-o", "it.glb")])
def test_what_is_there_is_replaced_only_when_asked(
    workers: Workers, atelier: Callable[..., Done], tmp_path: Path, command: Sequence[str]
) -> None:
    works(workers)
    if command[0] == "draw":
        makes(workers, a_file("image", "image/png", b"PNG!"), sent("done"))
    file = tmp_path / command[-1]
    file.write_bytes(b"mine")

    assert "is there already; --force replaces it" in complaint(atelier(*command))
    assert (workers.requests, file.read_bytes()) == ([], b"mine")
    assert atelier(*command, "--force").returncode == 0
    assert file.read_bytes() in (b"PNG!", b"glTF")


@pytest.mark.parametrize("name", ["chat", "draw"])
def test_an_adapter_may_be_named(atelier: Callable[..., Done], name: str) -> None:
    assert "there is no adapter 'oil' for model" in complaint(atelier(name, "a", "--adapter", "oil"))


@pytest.mark.parametrize("name", ["draw", "speak"])
def test_what_breaks_off_leaves_no_file(
    workers: Workers, atelier: Callable[..., Done], tmp_path: Path, name: str
) -> None:
    piece = sent("output", variant="image", media_type="image/png", b64="aGFsZg==")
    makes(workers, piece, httpx.ReadError("killed"))

    assert "went away while it worked" in complaint(atelier(name, "a"))
    assert list(tmp_path.glob("*.p*")) == list(tmp_path.glob(".*.part")) == []


def test_a_file_that_came_meanwhile_stays(
    workers: Workers, begun: Callable[..., "subprocess.Popen[bytes]"], tmp_path: Path
) -> None:
    gate: Future[None] = Future()
    makes(workers, sent("started"), opened(gate), a_file("image", "image/png", b"PNG"), sent("done"))
    process = begun("draw", "a")
    assert workers.is_asked.wait(LONG)
    (tmp_path / "picture.png").write_bytes(b"mine")
    gate.set_result(None)

    assert b"is there already" in process.communicate(timeout=LONG)[1]
    assert (process.returncode, (tmp_path / "picture.png").read_bytes()) == (1, b"mine")


# --- films and meshes ---


def test_a_film_is_followed_and_fetched(workers: Workers, atelier: Callable[..., Done], tmp_path: Path) -> None:
    works(workers)
    done = atelier("film", "the sea", "--previews", "sketches", "--frames", "9", "--json")
    told = json.loads(done.stdout)

    assert (tmp_path / "film.mp4").read_bytes() == FILES["/v1/videos"][0][2]
    assert (told["files"], told["status"], told["kind"], told["seed"]) == (["film.mp4"], "completed", "video", 5)
    for preview in told["previews"]:  # as many as were seen: the latest only are told
        assert (tmp_path / preview).read_bytes() == b"x"


def test_a_film_is_of_the_kind_that_its_file_says(
    workers: Workers, atelier: Callable[..., Done], tmp_path: Path
) -> None:
    works(workers)
    (tmp_path / "a.png").write_bytes(b"PNG")

    assert atelier("film", "the sea", "-o", "sea.gif").stdout == b"sea.gif\n"
    assert b'name="output_format"\r\n\r\ngif' in workers.requests[-1].content
    assert atelier("film", "--image", "a.png", "-o", "sea.webp").stdout == b"sea.webp\n"
    assert b'name="output_format"\r\n\r\nwebp' in workers.requests[-1].content
    assert "unknown ending" in complaint(atelier("film", "the sea", "-o", "sea.webm"))
    atelier("film", "the sea")
    assert b"output_format" not in workers.requests[-1].content


def test_a_mesh_is_of_the_kind_that_its_file_says(
    workers: Workers, atelier: Callable[..., Done], tmp_path: Path
) -> None:
    works(workers)
    assert atelier("sculpt", "a chair", "-o", "chair.gif").stdout == b"chair.gif\n"
    assert (tmp_path / "chair.gif").read_bytes() == b"GIF"


def test_a_job_that_fails_is_no_success(workers: Workers, atelier: Callable[..., Done], tmp_path: Path) -> None:
    workers.refuses_in_envelope(400, "prompt: no", "prompt", x_should_retry="false")
    assert "is failed: prompt: no" in complaint(atelier("sculpt", "a chair"))
    assert not (tmp_path / "mesh.glb").exists()


# --- Ctrl-C ---


@pytest.mark.parametrize("command", [("chat", "Hello"), ("draw", "a"), ("speak", "a"), ("speak", "a", "-o", "-")])
def test_ctrl_c_ends_a_generation(
    workers: Workers,
    begun: Callable[..., "subprocess.Popen[bytes]"],
    gateway: Gateway,
    tmp_path: Path,
    command: Sequence[str],
) -> None:
    begins = said("one", done=False) if command[0] == "chat" else sent("output", variant="a", b64="b25l")
    says(workers, begins, opened(Future()))
    process = begun(*command)
    assert workers.is_asked.wait(LONG)
    if command[0] == "chat" or "-" in command:
        assert process.stdout is not None
        assert os.read(process.stdout.fileno(), 100) == b"one"
    process.send_signal(signal.SIGINT)

    assert process.wait(LONG) == 130
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()
    assert [*tmp_path.glob("speech*"), *tmp_path.glob("*.part"), *tmp_path.glob(".*.part")] == []
    assert gateway.rows()[-1]["ending"] == "left"  # which waits for the end of all
    assert workers.num_open == 0


@pytest.mark.parametrize("command", [("film", "the sea"), ("sculpt", "a chair")])
def test_ctrl_c_cancels_a_job(
    workers: Workers, begun: Callable[..., "subprocess.Popen[bytes]"], gateway: Gateway, command: Sequence[str]
) -> None:
    works(workers, Future())
    process = begun(*command)
    assert workers.is_asked.wait(LONG)
    (job,) = gateway.client.get("/v1/jobs").json()["data"]
    until(gateway.client, job["id"], lambda seen: bool(seen["step_progress"]))
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=LONG)

    assert process.returncode == 130
    assert f"{job['id']} is cancelled" in words.decode()
    assert ended(gateway.client, job["id"])["status"] == "cancelled"


# --- what stands in the way ---


def test_models_are_listed(atelier: Callable[..., Done]) -> None:
    heading, *lines = atelier("models").stdout.decode().splitlines()
    assert heading.split() == ["Model", "Task", "State", "Default", "Licence"]
    assert any(line.split()[:2] == ["tiny-sd", "image"] for line in lines)
    assert {model["id"] for model in json.loads(atelier("models", "--json").stdout)["data"]} >= {"tiny-sd", "shap-e"}


def test_a_key_goes_before_that_of_the_environment(gateway: Gateway, atelier: Callable[..., Done]) -> None:
    key = gateway.client.post("/v1/keys", json={"owner": "ada", "scopes": ["admin", "text"]}).json()["key"]

    assert "says 401: a key is needed" in complaint(atelier("models"))
    assert "says 401: this is no key" in complaint(atelier("chat", "Hello", "--key", "sk-1"))
    assert "--key" in complaint(atelier("sculpt", "a", "--key", "sk-1"))
    assert atelier("models", "--key", key).returncode == 0
    assert atelier("models", "--key", key, "--url", f"{gateway.url}/v1/").returncode == 0


def test_an_unknown_model_is_answered_with_those_there_are(atelier: Callable[..., Done]) -> None:
    for command in ("chat", "speak", "draw", "film", "sculpt"):
        assert "says 404: model 'none' is not served" in complaint(atelier(command, "a", "--model", "none"))


def test_nobody_there_is_one_line(atelier: Callable[..., Done]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        for command in (("models",), ("chat", "a"), ("draw", "a"), ("film", "a")):
            assert f"nothing answers at {url}" in complaint(atelier(*command, "--url", url))


def test_what_cannot_be_done_is_refused_before_anybody_is_asked(workers: Workers, atelier: Callable[..., Done]) -> None:
    for command, words in (
        (("chat",), "there is no text"),
        (("speak", "-o", "a.txt", "a"), "unknown ending"),
        (("draw", "a", "-o", "nowhere/a.png"), "there is no folder nowhere"),
        (("draw", "a", "--mask", "a.png"), "--image names it"),
        (("draw", "a", "--image", "none.png"), "none.png cannot be read"),
        (("draw", "a", "-n", "2", "-o", "-"), "room for one picture"),
        (("film",), "nothing to film"),
        (("sculpt", "a", "--image", "b.png"), "not both"),
    ):
        assert words in complaint(atelier(*command))
    assert workers.requests == []


def test_a_wrong_option_is_no_failure_of_the_server(atelier: Callable[..., Done]) -> None:
    assert atelier("draw", "a", "-n", "99").returncode == 2
    assert atelier("paint", "a").returncode == 2


def test_shells_complete_commands(environment: dict[str, str]) -> None:
    asked = {"_TYPER_COMPLETE_ARGS": "atelier sc", "COMP_WORDS": "atelier sc", "COMP_CWORD": "1"}
    for shell in ("bash", "zsh", "fish"):
        more = {**asked, "_ATELIER_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
        command = [Path(sys.executable).parent / "atelier"]
        done = subprocess.run(command, env={**environment, **more}, capture_output=True, check=False, text=True)
        assert "sculpt" in done.stdout, shell
