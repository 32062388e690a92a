"""What may be chosen for each modality, as fields of its request; what is left alone is the model's own choice."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import streamlit as st

from ui import making
from ui.client import Client
from ui.session import told


@dataclass(frozen=True)
class Choice:
    """One of some words."""

    label: str
    words: tuple[str, ...]
    usual: object = None

    def ask(self, key: str, default: object) -> None:
        """Let it be chosen."""
        said = placeholder(default, self.usual)
        st.selectbox(
            self.label,
            self.words,
            None,
            key=key,
            placeholder=said,
            on_change=making.say_on,
            persist_state="session",
        )


@dataclass(frozen=True)
class Words:
    """A text."""

    label: str
    usual: object = None

    def ask(self, key: str, default: object) -> None:
        """Let it be written."""
        said = placeholder(default, self.usual)
        st.text_input(self.label, key=key, placeholder=said, on_change=making.say_on, persist_state="session")


@dataclass(frozen=True)
class Number(Words):
    """A number, which the gateway judges.

    It is written as a text: a browser's own field for numbers keeps to itself what it thinks too large, or cuts it, and
    another number would be sent than the one that is shown.
    """


STEPS = Number("Denoising steps")
GUIDANCE = Number("Guidance: how close to the words")
SEED = Number("Seed: the same one gives the same result")
SIZES = Choice("Size", ("64x64", "256x256", "512x512", "768x512", "512x768", "1024x576", "832x480"))
VOICE = "audio-voice"
FIELDS: Mapping[str, Mapping[str, Choice | Words]] = {
    "text": {
        "max_tokens": Number("Tokens at most"),
        "temperature": Number("Temperature: how daring"),
        "seed": SEED,
    },
    "image": {
        "size": SIZES,
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
        "negative_prompt": Words("What it should not show", "nothing"),
        "n": Number("Pictures", usual=1),
        "output_format": Choice("Format", ("png", "webp", "jpeg"), "png"),
        "seed": SEED,
    },
    "audio": {
        "response_format": Choice("Format", ("mp3", "wav", "flac", "opus", "aac", "pcm"), "mp3"),
        "speed": Number("Speed", 1),
        "seed": SEED,
    },
    "video": {
        "size": SIZES,
        "num_frames": Number("Frames"),
        "fps": Number("Frames a second"),
        "num_inference_steps": STEPS,
        "output_format": Choice("Format", ("mp4", "gif", "webp"), "mp4"),
        "seed": SEED,
    },
    "mesh": {
        "num_inference_steps": Number("Denoising steps"),
        "guidance_scale": GUIDANCE,
        "grid_size": Number("Grid: how fine"),
        "seed": SEED,
    },
}


def show(asked: Client, task: str, model: Mapping[str, Any] | None) -> None:
    """Let the fields of a request be chosen: what is chosen is kept at once.

    This is no fragment: a browser sends a change together with the click that comes right after it, and of the page
    only the fragment would be drawn anew.
    """
    defaults = model["defaults"] or {} if model else {}
    for name, field in FIELDS[task].items():
        field.ask(f"{task}-{name}", defaults.get(name))
    if task == "audio":
        with told():
            voices = (model or {}).get("voices") or asked.voices(model["id"] if model else None)
            forget_unless_in(voices, VOICE)
            Choice("Voice", tuple(voices)).ask(VOICE, None)
    if model and model.get("adapters"):  # providers' have none
        names = [each["name"] for each in model["adapters"]]
        forget_unless_in(names, adapter_key(task))
        Choice("Adapter", tuple(names), "none").ask(adapter_key(task), None)
    else:
        forget_unless_in((), adapter_key(task))


def forget_unless_in(offered: Collection[str], key: str) -> None:
    """Forget a choice that was one of another model's."""
    if st.session_state.get(key) not in offered:
        st.session_state.pop(key, None)


def chosen(task: str) -> dict[str, Any]:
    """Return the fields that were, and the model."""
    values = {name: str(st.session_state.get(key) or "").strip() for name, key in keys_of(task).items()}
    numbers = {name for name, field in FIELDS[task].items() if isinstance(field, Number)}
    return {name: number_of(value) if name in numbers else value for name, value in values.items() if value}


def chosen_for_picture(asked: Client, task: str) -> dict[str, Any]:
    """Return them for what is made of a picture: without a model that takes none, and without its adapter."""
    fields = chosen(task)
    taking = {model["id"] for model in asked.models() if "image" in (model["input_modalities"] or ())}
    is_left_out = "model" in fields and fields["model"] not in taking
    return {name: value for name, value in fields.items() if not (is_left_out and name in ("model", "adapter"))}


def number_of(words: str) -> int | float | str:
    """Read a number; what is none stays as it is, for the gateway to say so."""
    if re.fullmatch(r"[+-]?[0-9]{1,40}", words):
        return int(words)
    return float(words) if re.fullmatch(r"[+-]?([0-9]{1,40}\.[0-9]{0,40}|\.[0-9]{1,40})", words) else words


def keys_of(task: str) -> dict[str, str]:
    """Under which the session has the fields of a request."""
    keys = {name: f"{task}-{name}" for name in FIELDS[task]} | {"model": model_key(task), "adapter": adapter_key(task)}
    return keys | ({"voice": VOICE} if task == "audio" else {})


def formats_of(task: str) -> tuple[str, ...]:
    """Return what kinds of file may be chosen; none where all files come at once."""
    found = (field.words for name, field in FIELDS[task].items() if isinstance(field, Choice) and "format" in name)
    return next(found, ())


def model_key(task: str) -> str:
    """Under which the session has the id of the model."""
    return f"model-{task}"


def adapter_key(task: str) -> str:
    """Under which the session has the name of the adapter."""
    return f"{task}-adapter"


def placeholder(default: object, usual: object = None) -> str:
    """What stands where nothing was chosen: the model's default, or else what is usual for all of them."""
    found = usual if default is None else default
    return "the model's own" if found is None else str(found)
