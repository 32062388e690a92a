"""`python -m tests.settings_page` (`make settings`): write `docs/settings.md` from what the code says of its settings.

A setting of one of the four classes is described by the docstring under its field; variables that other code reads are
in `OTHERS` here.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from cli.settings import Settings as UpSettings
from gateway.settings import Settings as GatewaySettings
from services.settings import Settings as WorkerSettings
from ui.settings import Settings as StudioSettings

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "settings.md"
READERS: Final[dict[str, type[BaseSettings]]] = {
    "gateway": GatewaySettings,
    "workers": WorkerSettings,
    "`atelier up`": UpSettings,
    "studio": StudioSettings,
}
OTHERS: Final[dict[str, dict[str, tuple[str, str]]]] = {
    "Commands": {
        "ATELIER_API_KEY": ("", "the key that they send; `--key` goes before it"),
        "HF_HOME": ("`~/.cache/huggingface`", "where weights of the hub are kept; also the workers'"),
        "HF_HUB_CACHE": ("`hub` in that", "likewise"),
        "HF_TOKEN": ("", "for repositories of the hub that ask for one; also the workers'"),
        "HF_TOKEN_PATH": (
            "`token` in `HF_HOME`",
            "a file that has it, for where `HF_TOKEN` is not set; may be empty or absent",
        ),
    },
    "Installing, images and containers": {
        "ATELIER_SECRETS_DIR": ("", "folder with files that hold settings of gateway and workers"),
        "ATELIER_TORCH_INDEX": ("", "package index to take torch from"),
        "ATELIER_TORCH_WHEELS": ("", "folder of wheels to take torch from; of the worker image `wheels`"),
        "PYTHON_IMAGE": ("`python:3.11-slim-bookworm`", "build argument: what the images begin with"),
        "TORCH_INDEX": ("", "build argument that Compose makes of `ATELIER_TORCH_INDEX`"),
        "WORKER_LOCK": ("`worker`", "build argument: `ray` for a worker image [with Ray](cluster.md)"),
        "TORCH_WHEELS": ("`wheels`", "build argument that Compose makes of `ATELIER_TORCH_WHEELS`"),
        **{f"{task}_GPU": ("`0`", "its GPU in containers") for task in ("TEXT", "AUDIO", "IMAGE", "VIDEO", "MESH")},
    },
    "Of the libraries": {
        "OMP_NUM_THREADS": ("all cores", "threads of each worker; `atelier up` sets 1 for the tiny checkpoints"),
        "OMP_WAIT_POLICY": ("", "`PASSIVE` where `atelier up` or Compose starts workers: waiting threads sleep"),
        "BENTOML_HOME": (
            "`~/bentoml`",
            "a folder for each worker: `bentoml serve` empties that of metrics in it",
        ),
        "BENTOML_CONFIG_OPTIONS": ("", "BentoML's own: `services.image.traffic.timeout=120` beats the decorator"),
        "BENTOML_DO_NOT_TRACK": ("", "`True` where we start or build something"),
        "OTEL_EXPORTER_OTLP_ENDPOINT": ("", "where [traces](operations.md#traces) go; empty: there are none"),
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": ("", "likewise, whole"),
        "OTEL_SERVICE_NAME": ("`atelier-gateway`, `atelier-text`, …", "what it is called in traces"),
        "AWS_ACCESS_KEY_ID": ("", "for [artefacts in a bucket](artefacts.md#where), as the other `AWS_*` there"),
    },
}
BEFORE = """# Settings

All are environment variables. Gateway, workers, studio and `atelier up` read them once, when they start; `atelier up`
passes them on to what it starts. `make settings` writes this page from the code.

Gateway and workers take what is not set from files, if `ATELIER_SECRETS_DIR` names a folder (such as `/run/secrets`):
`ATELIER_INTERNAL_TOKEN` from the file `atelier_internal_token` in it, and so any other. A variable goes before a file,
also an empty one.

"""
AFTER = """A key of a provider is in the variable that `api_key_env` of [its entry](providers.md) names.
"""


def variable(field: str) -> str:
    return f"ATELIER_{field.upper()}"


def readers(field: str) -> list[str]:
    return [reader for reader, settings in READERS.items() if field in settings.model_fields]


def described(field: str) -> FieldInfo:
    """The field of the first class that says what it means.

    Raises:
        LookupError: none does.
    """
    found = [settings.model_fields[field] for settings in READERS.values() if field in settings.model_fields]
    for each in found:
        if each.description:
            return each
    raise LookupError(f"{variable(field)} has no docstring under its field; write one, and run make settings")


def shown(default: Any) -> str:
    """A default as a variable would say it."""
    value = default.get_secret_value() if isinstance(default, SecretStr) else default
    if value is None or value in ("", (), frozenset(), {}):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`"


def row(name: str, default: str, meaning: str) -> str:
    return f"| `{name}` |{f' {default} ' if default else ' '}| {meaning} |"


def table(fields: list[str], *, says_readers: bool = False) -> str:
    rows = []
    for field in fields:
        info = described(field)
        meaning = " ".join((info.description or "").split())
        whose = f" ({', '.join(readers(field))})" if says_readers else ""
        rows.append(row(variable(field), shown(info.get_default(call_default_factory=False)), meaning + whose))
    return "\n".join(["| variable | default | meaning |", "|---|---|---|", *rows])


def sections() -> Iterator[tuple[str, str]]:
    """Yield the headings and what is under them."""
    names = list(dict.fromkeys(field for settings in READERS.values() for field in settings.model_fields))
    shared = [name for name in names if len(readers(name)) > 1]
    yield "Shared", table(shared, says_readers=True)
    for reader in READERS:
        its = [name for name in names if readers(name) == [reader]]
        yield reader[:1].upper() + reader[1:], table(its)
    for heading, others in OTHERS.items():
        rows = [row(name, *said) for name, said in others.items()]
        yield heading, "\n".join(["| variable | default | meaning |", "|---|---|---|", *rows])


def page() -> str:
    """The whole of `docs/settings.md`."""
    parts = [f"## {heading}\n{text}\n" for heading, text in sections()]
    return BEFORE + "\n".join(parts) + "\n" + AFTER


def documented() -> set[str]:
    """All variables that the page names in its tables."""
    return set(re.findall(r"^\| `([A-Z_0-9]+)` \|", page(), re.MULTILINE))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
