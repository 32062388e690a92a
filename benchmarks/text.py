"""Text by the token against others who write it: `python -m benchmarks.text`.

Every writer has a process of its own, all are in memory at once, and they take turns; the others sleep meanwhile.
"""

import argparse
import asyncio
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from types import MappingProxyType

import httpx

from benchmarks import llama
from benchmarks.checkpoints import BENCH, ROOT
from benchmarks.llama import FOLDER, Prompt, prompts
from benchmarks.servers import (
    bentoml_environment,
    bentoml_serve,
    end,
    free_port,
    make_client,
    peer_python,
    wait_until_ready,
)
from benchmarks.writers import WRITERS

NUM_NEW = 64
OURS = "tinyllama-1.1b-chat"  # what our checkpoint stands for
THREADS = MappingProxyType({"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"})
LLAMA_CPP = ("llama-cpp-python==0.3.36", "gguf")
BOOK = "pipeline-bfloat16"
SERVERS = ("http-float16", "http-int8", "transformers-serve")

Ask = Callable[[Sequence[Prompt], int], float]


def main() -> None:
    """Measure what was asked for."""
    reader = argparse.ArgumentParser(prog="python -m benchmarks.text", description=__doc__)
    default = ["ours-float16", "ours-int8", BOOK, "llama.cpp-F16", "llama.cpp-Q8_0", *SERVERS]
    reader.add_argument("--writers", nargs="+", choices=[*WRITERS, *SERVERS], default=default)
    reader.add_argument("--callers", nargs="+", type=int, default=[1, 8])
    reader.add_argument("--rounds", type=int, default=3)
    reader.add_argument("--latency", action="store_true", help="only how newcomers and long prompts are felt")
    options = reader.parse_args()
    llama.build()
    if options.latency:
        for kind in ("float16", "int8"):
            with serving(f"http-{kind}") as url:
                say(f"{kind}: {asyncio.run(latency(url))}")
        return
    with ExitStack() as stack:
        asks = {name: stack.enter_context(writer(name)) for name in options.writers}
        for number in options.callers:
            say(compare(asks, prompts(number), options.rounds))


def compare(asks: Mapping[str, Ask], wanted: Sequence[Prompt], rounds: int) -> str:
    """Let everyone write the same in turns, and say how many tokens a second they made."""
    num_tokens = NUM_NEW * len(wanted)
    rates: dict[str, list[float]] = {name: [] for name in asks}
    for index in range(rounds + 1):
        for name, ask in asks.items():
            seconds = ask(wanted, NUM_NEW if index else 8)
            if index:  # the first one warms up
                rates[name].append(num_tokens / seconds)
                say(f"  {len(wanted)} callers, round {index}, {name}: {num_tokens / seconds:.2f} tokens/s")
    lines = [f"{len(wanted)} callers, {NUM_NEW} new tokens each: tokens a second, median of {rounds} rounds"]
    for name, found in rates.items():
        ratios = (
            f"{statistics.median(a / b for a, b in zip(found, other, strict=True)):.2f}x {peer}"
            for peer, other in rates.items()
            if peer != name and name.startswith(("ours", "http"))
        )
        lines.append(f"| {name} | {statistics.median(found):.2f} | {', '.join(ratios)} |")
    return "\n".join(lines)


@contextmanager
def writer(name: str) -> Iterator[Ask]:
    """Start a writer, and return what asks it and says how many seconds it took."""
    if name in SERVERS:
        with serving(name) as url:
            model = str(FOLDER) if name == "transformers-serve" else None
            yield lambda wanted, num_new: asyncio.run(ask_server(url, model, wanted, num_new))
        return
    python = peer_python("llama", LLAMA_CPP) if name.startswith("llama.cpp") else sys.executable
    command = (str(python), "-m", "benchmarks.writers", name)
    with (BENCH / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603  our own command
            command,
            cwd=ROOT,
            env={**os.environ, **THREADS, "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdin is not None  # noqa: S101  told so above
    assert process.stdout is not None  # noqa: S101
    source, sink = process.stdout, process.stdin
    try:
        if source.readline() != "ready\n":
            raise SystemExit(f"{name} does not start; {log.name} says why")

        def ask(wanted: Sequence[Prompt], num_new: int) -> float:
            sink.write(json.dumps({"prompts": [asdict(prompt) for prompt in wanted], "num_new": num_new}) + "\n")
            sink.flush()
            answer = json.loads(source.readline())
            if answer["num_tokens"] != num_new * len(wanted):
                raise SystemExit(f"{name} wrote {answer['num_tokens']} tokens")
            return float(answer["seconds"])

        yield ask
    finally:
        end(process)


@contextmanager
def serving(name: str) -> Iterator[str]:
    """Start a server of the checkpoint, and return its URL."""
    port = free_port()
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("ATELIER_", "BENTOML_"))}
    environment = {**inherited, **THREADS, "HF_HUB_OFFLINE": "1"}
    if name == "transformers-serve":
        command = (
            str(ROOT / ".venv" / "bin" / "transformers"),
            *("serve", str(FOLDER), "--continuous-batching", "--device", "cpu", "--dtype", "bfloat16"),
            *("--port", str(port), "--cb-num-blocks", "64", "--cb-block-size", "32", "--cb-max-batch-tokens", "512"),
        )
    else:
        command = bentoml_serve("services.text.service:TextService")(port)
        environment |= {
            **bentoml_environment(name),
            "ATELIER_DATA_DIR": str(llama.data_dir()),
            "ATELIER_DEVICE": "cpu",
            "ATELIER_TEXT_PACKING": name.removeprefix("http-"),
            "ATELIER_PREFIX_CACHE_MB": "0",
            "ATELIER_MAX_BATCH_SIZE": "16",
        }
    log = BENCH / f"{name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(  # noqa: S603  our own command
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(process, url + ("/health" if name == "transformers-serve" else "/readyz"), log)
        yield url
    finally:
        end(process)


async def ask_server(url: str, model: str | None, wanted: Sequence[Prompt], num_new: int) -> float:
    """Return the seconds until all have their last token; everyone streams."""
    async with make_client() as client:
        began = time.perf_counter()
        counts = await asyncio.gather(*(follow(client, url, model, prompt.text, num_new) for prompt in wanted))
        seconds = time.perf_counter() - began
    if any(count.num_tokens != num_new for count in counts):
        raise SystemExit(f"{url} wrote {[count.num_tokens for count in counts]} tokens")
    return seconds


@dataclass
class Stream:
    """What a caller saw: when pieces came, and how many tokens were counted."""

    times: list[float]
    num_tokens: int


async def follow(
    client: httpx.AsyncClient,
    url: str,
    model: str | None,
    text: str,
    num_new: int,
    on_piece: Callable[[], None] | None = None,
) -> Stream:
    """Follow a completion to its end."""
    body = {"prompt": text, "max_tokens": num_new, "temperature": 0, "stream": True}
    body |= {"model": model} if model else {"model": OURS, "stream_options": {"include_usage": True}}
    seen = Stream([], 0)
    async with client.stream("POST", f"{url}/v1/completions", json=body) as answer:
        if not answer.is_success:
            raise SystemExit(f"{answer.status_code}: {(await answer.aread()).decode()}")
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if chunk.get("usage"):
                seen.num_tokens = chunk["usage"]["completion_tokens"]
            if chunk["choices"]:
                seen.times.append(time.perf_counter())
                if on_piece is not None:
                    on_piece()
    return seen


async def latency(url: str) -> str:
    """Say how long newcomers wait while eight others are written, and how a long prompt holds up who is written."""
    async with make_client() as client:
        await beside(client, url, 8, 32, seed=99)  # warms up
        seen = [await beside(client, url, 8, 32, seed) for seed in range(8)]
        waits = [visit.first / statistics.median(visit.before) for visit in seen]
        lines = [
            f"newcomers of 32 tokens beside 8: first token after {statistics.median(waits):.2f} iterations "
            f"({', '.join(f'{wait:.2f}' for wait in waits)}) "
            f"of {1000 * statistics.median(visit.before[0] for visit in seen):.0f} ms"
        ]
        for number in (1, 8):
            visit = await beside(client, url, number, 1500, seed=7)
            usual, longest = statistics.median(visit.before), statistics.quantiles(visit.during, n=100)[-1]
            lines.append(
                f"1,500 tokens beside {number}: read in {visit.first:.1f} s; gaps of the others {1000 * usual:.0f} ms "
                f"before, p99 {1000 * longest:.0f} ms meanwhile: {longest / usual:.2f}x, "
                f"and {longest / statistics.median(visit.during):.2f}x of the median meanwhile"
            )
    return "\n".join(lines)


@dataclass
class Visit:
    """What happened when somebody came: gaps between the tokens of another, in seconds, and the newcomer's wait."""

    before: list[float]
    during: list[float]
    first: float


async def beside(client: httpx.AsyncClient, url: str, number: int, length: int, seed: int) -> Visit:
    """Let somebody come with a prompt of `length` tokens while `number` others are written, who leave then."""
    times: list[list[float]] = [[] for _ in range(number)]
    all_write = asyncio.Event()

    def note(own: list[float]) -> None:
        own.append(time.perf_counter())
        if all(len(other) >= 12 for other in times):
            all_write.set()

    others = [
        asyncio.create_task(follow(client, url, None, prompt.text, 1500, functools.partial(note, own)))
        for prompt, own in zip(prompts(number, (32,), seed=1000 + seed), times, strict=True)
    ]
    await all_write.wait()
    (newcomer,) = prompts(1, (length,), seed=seed)
    began = time.perf_counter()
    seen = await follow(client, url, None, newcomer.text, 1)
    for other in others:
        other.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    gaps = list(itertools.pairwise(times[0]))
    before = [end - start for start, end in gaps if end <= began][-8:]
    during = [end - start for start, end in gaps if end > began]
    return Visit(before, during, seen.times[0] - began)


def say(line: str) -> None:
    """Print at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
