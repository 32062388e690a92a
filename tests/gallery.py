"""Writes docs/gallery of what a `make up` that runs makes: `python -m tests.gallery [URL]`, or `make gallery`."""

import base64
import io
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image

from tests.services.ears import listen

FOLDER = Path(__file__).parents[1] / "docs" / "gallery"
URL = "http://127.0.0.1:8000"
HEAD = """# Gallery

What the trained tiny models make, on any processor and without a download. `make gallery` writes this page: it asks a
`make up` that runs.
"""
CHATS: Sequence[tuple[str, Sequence[str]]] = (
    ("About Atelier", ("What is Atelier?", "How do I start it?", "Where is the studio?", "Do I need a GPU?")),
    (
        "Routes",
        ("How do I make a picture?", "Which route do I use to edit a picture?", "How do I draw in the terminal?"),
    ),
    ("Errors", ("What does error 429 mean?", "Which status has model_loading?", "I got a 401.")),
    ("Sums", ("What is 17 + 25?", "How much is 61 - 38?", "Which is larger, 39 or 93?")),
    ("Who says what", ("Hello, my name is Tovari.", "Spell garden.", "What is my name?", "Thank you!")),
    ("What it does not know", ("What is the capital of Peru?", "What time is it?")),
    ("A story", ("Tell me a story about a fox.",)),
)
ALOUD = ("Where is the studio?", "What does error 404 mean?", "What is 17 + 25?")
DRAWN = (
    "a large red circle above a small blue square on a white background",
    "a small green triangle in the bottom left corner on a black background",
    "a large yellow circle on the right on a blue background",
    "a large white triangle on a red background",
    "a small red square to the left of a large green triangle on a yellow background",
    "a small white circle at the top on a red background",
    "a large blue square on the left on a white background",
    "a large orange circle below a small black triangle on a green background",
)
FIRST = "a large red circle on the left on a white background"
EDITED = "a large blue square on the left on a yellow background"
SAID = {  # by each voice
    "bass": "Good evening.",
    "tenor": "Who are you?",
    "alto": "Atelier, since 2025",
    "soprano": "It is ten past 9.",
}
FAST = 120  # columns of a spectrogram in a second
HIGHEST = 5000  # Hz
FILMED = (
    "a small red circle in the top left corner on a white background",
    "a large blue square on the left on a yellow background",
    "a small white triangle at the top on a black background",
    "a small green triangle above a small orange square on a purple background",
)
TOLD = (
    "a large red circle moves to the right on a white background",
    "a small yellow triangle rises on a blue background",
    "a large green square falls on a black background",
    "a small purple circle moves to the left on an orange background",
)
PAINTED = "a small green square to the right of a large red circle on a white background"


SOLID = (
    "a large red cube",
    "a large green torus",
    "a large blue pyramid",
    "a large yellow cone",
    "a small purple cylinder",
    "a small orange ball",
)
SHOWN = (
    "a large red circle on a white background",
    "a large blue square on a yellow background",
    "a large green triangle on a white background",
)


def main(url: str) -> None:
    """Have everything made, and write the page."""
    FOLDER.mkdir(exist_ok=True)
    with httpx.Client(base_url=url, timeout=300, trust_env=False) as client:
        sections = [line for section in SECTIONS for line in section(client)]
    (FOLDER / "README.md").write_text("\n".join([HEAD, *sections, ""]), encoding="utf-8")


def text(client: httpx.Client) -> Iterator[str]:
    """Chat, and have some of it asked of a pirate."""
    yield "## Text"
    for title, asked in CHATS:
        yield f"\n### {title}\n\n{chat(client, asked)}"
    yield f"\n### With the adapter `pirate`\n\n{chat(client, ALOUD, adapter='pirate')}"


def chat(client: httpx.Client, asked: Sequence[str], **fields: str) -> str:
    """One conversation; what is likeliest is said, so that everyone reads the same."""
    turns: list[dict[str, str]] = []
    for question in asked:
        turns.append({"role": "user", "content": question})
        body = {"model": "chat", "messages": turns, "temperature": 0, **fields}
        answer = client.post("/v1/chat/completions", json=body).raise_for_status().json()
        turns.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})
    exchanges = zip(turns[::2], turns[1::2], strict=True)
    return "\n>\n".join(f"> **{question['content']}**<br>{answer['content']}" for question, answer in exchanges)


def image(client: httpx.Client) -> Iterator[str]:
    """Draw, also by night, draw over, and paint into a part."""
    yield "\n## Pictures\n\nOf 64 pixels, shown twice as large; with seed 1, and none left out.\n"
    save([[draw(client, words) for words in DRAWN[start : start + 4]] for start in (0, 4)], "shapes.png")
    yield "![Eight pictures of shapes](shapes.png)\n"
    yield "\n".join(f"{number}. {words}" for number, words in enumerate(DRAWN, start=1))
    save([[draw(client, words, adapter="night") for words in DRAWN[:4]]], "night.png")
    yield "\n### With the adapter `night`\n\n![The first four, on black](night.png)\n"
    yield "The first four again: all grounds are black."
    before = draw(client, FIRST)
    edited = [draw(client, EDITED, image=before, strength=strength) for strength in ("0.3", "0.6", "0.9")]
    painted = [draw(client, PAINTED, image=before, mask=right_half(), seed=seed) for seed in ("1", "2", "3")]
    save([[before, *edited], [before, *painted]], "edits.png")
    yield "\n### From a picture\n\n![Pictures that were drawn over, and painted into](edits.png)\n"
    yield f"Above: *{FIRST}*, and what becomes of it by *{EDITED}* with `strength` 0.3, 0.6 and 0.9.\n"
    yield f"Below: the same, and into its right half alone is painted *{PAINTED}*, with three seeds."


def draw(client: httpx.Client, words: str, **more: Any) -> bytes:
    """Return a PNG; of what is drawn over, `image` and `mask` are files."""
    fields = {"model": "shapes", "prompt": words, "seed": "1"}
    fields |= {name: value for name, value in more.items() if isinstance(value, str)}
    files = {name: value for name, value in more.items() if isinstance(value, bytes)}
    headers = {"accept": "image/png"}
    if files:
        answer = client.post("/v1/images/edits", data=fields, files=files, headers=headers)
    else:
        answer = client.post("/v1/images/generations", json={**fields, "seed": 1}, headers=headers)
    return answer.raise_for_status().content


def right_half() -> bytes:
    """A mask that is white where to paint."""
    mask, file = Image.new("L", (64, 64)), io.BytesIO()
    mask.paste(255, (32, 0, 64, 64))
    mask.save(file, "PNG")
    return file.getvalue()


def video(client: httpx.Client) -> Iterator[str]:
    """Have pictures of shapes move, and one by several motions."""
    yield "\n## Films\n\nOf the pictures that the model above drew; with seed 1, and none left out.\n"
    pictures = [draw(client, words) for words in FILMED]
    save([film_of(client, picture) for picture in pictures], "moves.png")
    yield "![Four films of shapes, frame by frame](moves.png)\n"
    yield "\n".join(f"{number}. {words}" for number, words in enumerate(FILMED, start=1))
    save([film_of(client, pictures[0], motion_bucket_id=bucket) for bucket in ("85", "170", "255")], "motions.png")
    yield "\n![Three films of one picture](motions.png)\n"
    yield "The first picture with `motion_bucket_id` 85, 170 and 255."
    yield "\n### From words\n"
    save([film(client, model="films", prompt=words) for words in TOLD], "films.png")
    yield "![Four films of words, frame by frame](films.png)\n"
    yield "\n".join(f"{number}. {words}" for number, words in enumerate(TOLD, start=1))


def film_of(client: httpx.Client, picture: bytes, **fields: str) -> Sequence[bytes]:
    """Return the frames of a film that begins with the picture, as PNGs."""
    return film(client, picture, model="moves", **fields)


def film(client: httpx.Client, picture: bytes | None = None, **fields: str) -> Sequence[bytes]:
    """Have it made by a job; return its frames as PNGs."""
    if picture is None:
        begun = client.post("/v1/videos", json={"seed": 1, **fields})
    else:
        begun = client.post("/v1/videos", data={"seed": "1", **fields}, files={"input_reference": picture})
    job = begun.raise_for_status().json()
    while job["status"] in {"queued", "in_progress"}:
        time.sleep(0.2)
        job = client.get(f"/v1/videos/{job['id']}").raise_for_status().json()
    answer = client.get(f"/v1/videos/{job['id']}/content").raise_for_status()
    with av.open(io.BytesIO(answer.content), "r") as container:
        return [as_png(Image.fromarray(frame.to_ndarray(format="rgb24"))) for frame in container.decode(video=0)]


def as_png(picture: Image.Image) -> bytes:
    """Write a picture as a file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def mesh(client: httpx.Client) -> Iterator[str]:
    """Make solids of words, and of pictures that the image model draws."""
    yield "\n## 3D\n\nClosed meshes, as they turn; with seed 1, and none left out.\n"
    turn([sculpt(client, prompt=words) for words in SOLID], "solids.webp")
    yield "![Six solids that turn](solids.webp)\n"
    yield "\n".join(f"{number}. {words}" for number, words in enumerate(SOLID, start=1))
    pictures = [draw(client, words) for words in SHOWN]
    turn([sculpt(client, image=base64.b64encode(picture).decode()) for picture in pictures], "from_pictures.webp")
    save([pictures], "flat.png")
    yield "\n### From a picture\n\n![Three pictures of flat shapes](flat.png)\n"
    yield "What `shapes` draws of " + ", ".join(f"*{words}*" for words in SHOWN) + ", and what is made of it:\n"
    yield "![A sphere, a cube and a cone that turn](from_pictures.webp)"


def sculpt(client: httpx.Client, **source: str) -> bytes:
    """Return a GIF of what turns; it is made by a job."""
    made = client.post("/v1/3d/generations", json={**source, "seed": 1}).raise_for_status().json()
    return file(client, made["id"], "image/gif")


def file(client: httpx.Client, job_id: str, media_type: str) -> bytes:
    """Wait for a job's end, and return its file of a type."""
    with client.stream("GET", f"/v1/jobs/{job_id}/events") as events:
        events.read()
    outputs = client.get(f"/v1/jobs/{job_id}").raise_for_status().json()["outputs"]
    url = next(output["url"] for output in outputs if output["media_type"] == media_type)
    return client.get(url).raise_for_status().content


def turn(gifs: Sequence[bytes], name: str) -> None:
    """Write one film in which they turn beside each other, three in a row."""
    films = [Image.open(io.BytesIO(gif)) for gif in gifs]
    side = films[0].width
    sheets = []
    for number in range(getattr(films[0], "n_frames", 1)):
        sheet = Image.new("RGB", (3 * side, -(-len(films) // 3) * side), "white")
        for place, film in enumerate(films):
            film.seek(number)
            sheet.paste(film.convert("RGB"), (place % 3 * side, place // 3 * side))
        sheets.append(sheet)
    sheets[0].save(FOLDER / name, save_all=True, append_images=sheets[1:], duration=100, loop=0, quality=60)


def save(rows: Sequence[Sequence[bytes]], name: str) -> None:
    """Write a sheet of pictures of 64 pixels, at twice their size."""
    sheet = Image.new("RGB", (136 * len(rows[0]) - 8, 136 * len(rows) - 8), "white")
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            drawn = Image.open(io.BytesIO(picture)).convert("RGB").resize((128, 128), Image.Resampling.NEAREST)
            sheet.paste(drawn, (136 * column, 136 * row))
    sheet.save(FOLDER / name, optimize=True)


def speech(client: httpx.Client) -> Iterator[str]:
    """Have each voice say something, and show and write down what is to be heard."""
    yield "\n## Speech\n\nA letter is a tone: its pitch is the voice's, and two of its overtones are its own.\n"
    yield "| voice | asked | heard by the judge of the tests | sound |\n| --- | --- | --- | --- |"
    sheets = []
    for voice, words in SAID.items():
        (FOLDER / f"{voice}.mp3").write_bytes(speak(client, words, voice, "mp3"))
        samples, rate = soundfile.read(io.BytesIO(speak(client, words, voice, "wav")))
        heard = listen(samples, rate)
        sheets.append(spectrogram(samples, rate))
        yield f"| `{voice}`, {statistics.median(heard.pitches):.0f} Hz | {words} | {heard.text} | [mp3]({voice}.mp3) |"
    stack(sheets).save(FOLDER / "speech.png", optimize=True)
    yield "\n![Their spectrograms, up to 5 kHz](speech.png)"


def speak(client: httpx.Client, words: str, voice: str, form: str) -> bytes:
    """Return a file of speech."""
    body = {"model": "letters", "input": words, "voice": voice, "seed": 1, "response_format": form}
    return client.post("/v1/audio/speech", json=body).raise_for_status().content


def spectrogram(samples: NDArray[np.float64], rate: int) -> NDArray[np.uint8]:
    """Draw what is in the sound: time goes to the right, frequency upwards, and 60 dB are from white to black."""
    width = 1024
    starts = range(0, len(samples) - width, rate // FAST)
    spectra = np.array([np.abs(np.fft.rfft(samples[start : start + width] * np.hanning(width))) for start in starts])
    levels = 20 * np.log10(spectra[:, : HIGHEST * width // rate].T[::-1] / spectra.max() + 1e-6)
    picture: NDArray[np.uint8] = (255 * np.clip(-levels / 60, 0, 1)).astype(np.uint8)
    return picture


def stack(sheets: Sequence[NDArray[np.uint8]]) -> Image.Image:
    """Put drawings one above the other, at thrice their size across and once up."""
    widest = max(sheet.shape[1] for sheet in sheets)
    rows = [np.pad(sheet, ((0, 8), (0, widest - sheet.shape[1])), constant_values=255) for sheet in sheets]
    return Image.fromarray(np.concatenate(rows).repeat(3, axis=1))


SECTIONS: Sequence[Callable[[httpx.Client], Iterator[str]]] = (text, image, video, speech, mesh)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else URL)
