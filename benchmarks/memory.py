"""How much more memory a film or a sound of ten times the length takes to encode, each form in a process of its own.

`python -m benchmarks.memory`: installed; no model runs, the frames and samples are noise. What counts is the process's
peak, libraries included.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from services.audio.answers import SpeechEncoder
from services.audio.schema import Format
from services.encoders import GifEncoder, Mp4Encoder, WebpEncoder
from services.engine.events import Done
from services.engine.outputs import Sound
from services.finals import FilmFiles, FinalEvents, SoundFiles
from services.provenance import Provenance

FRAMES, SECONDS, TIMES = 14, 10, 10
HEIGHT, WIDTH, RATE = 256, 448, 24_000
PROVENANCE = Provenance("a-model", "a-revision", 1)


def noise(draws: np.random.Generator) -> Any:
    """Return a frame that compresses as a photograph does: noise on a sixteenth of the pixels."""
    coarse = draws.integers(0, 256, (HEIGHT // 4, WIDTH // 4, 3), dtype=np.uint8)
    return np.repeat(np.repeat(coarse, 4, axis=0), 4, axis=1)


def film(encoder: Any, times: int) -> int:
    """Encode a film; return its bytes, which nobody keeps."""
    draws = np.random.default_rng(0)
    num_bytes = sum(len(encoder.add(noise(draws))) for _ in range(FRAMES * times))
    return num_bytes + finish(encoder)


def speech(encoder: Any, times: int) -> int:
    """Encode a speech, a second at a time."""
    draws = np.random.default_rng(0)
    sounds = (Sound(draws.standard_normal(RATE).astype(np.float32) / 4, RATE) for _ in range(SECONDS * times))
    return sum(len(encoder.add(sound)) for sound in sounds) + finish(encoder)


def finish(encoder: Any) -> int:
    """Take the rest, piece by piece where it comes so."""
    rest = encoder.rest(Done()) if isinstance(encoder, FinalEvents) else [encoder.close(Done())]
    num_bytes = sum(map(len, rest))
    encoder.abort()
    return num_bytes


def sounds(form: Format) -> dict[str, Callable[[int], int]]:
    """The streamed form, and a job's."""
    return {
        f"speech, {form}, streamed": lambda times: speech(SpeechEncoder(form, 1.5, PROVENANCE), times),
        f"speech, {form}, a job": lambda times: speech(
            FinalEvents(SoundFiles(SpeechEncoder(form, 1.5, PROVENANCE))), times
        ),
    }


CASES: dict[str, Callable[[int], int]] = {
    "film, mp4, streamed": lambda times: film(Mp4Encoder(7, PROVENANCE), times),
    "film, gif, streamed": lambda times: film(GifEncoder(7, PROVENANCE), times),
    "film, webp, in one piece": lambda times: film(WebpEncoder(7, PROVENANCE), times),
    "film, mp4, a job": lambda times: film(FinalEvents(FilmFiles(7, FRAMES * times, PROVENANCE)), times),
    "film, gif, a job": lambda times: film(FinalEvents(FilmFiles(7, FRAMES * times, PROVENANCE, "gif")), times),
    "film, webp, a job": lambda times: film(FinalEvents(FilmFiles(7, FRAMES * times, PROVENANCE, "webp")), times),
    **sounds("mp3"),
    **sounds("flac"),
    **sounds("wav"),
}


def measured(name: str, times: int) -> tuple[int, int]:
    """Return the bytes of the file and the peak of a process that has made it, in bytes."""
    command = [sys.executable, "-m", "benchmarks.memory", name, str(times)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603  our own
    num_bytes, peak = json.loads(told)
    return num_bytes, peak


def main() -> None:
    """Measure all cases, or be the process of one."""
    if len(sys.argv) > 1:
        _, name, times = sys.argv
        num_bytes = CASES[name](int(times))
        sys.stdout.write(json.dumps([num_bytes, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
        return
    for name in CASES:
        (small, one), (large, ten) = measured(name, 1), measured(name, TIMES)
        told = {"file": round(large / 1e6, 1), "peak": round(one / 1e6), "peak_10": round(ten / 1e6)}
        sys.stdout.write(f"{name}: {json.dumps({**told, 'ratio': round(ten / one, 2)})} ({small / 1e6:.1f} MB)\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
