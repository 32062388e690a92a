"""Who may import whom (HOUSE), by a walk over the sources; every exception has its name here."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("gateway", "services", "cli", "ui", "benchmarks", "deploy", "tests")
MODALITIES = frozenset({"text", "audio", "image", "video", "mesh"})
MODELS = frozenset({"torch", "transformers", "diffusers", "accelerate", "huggingface_hub", "safetensors", "tokenizers"})
CODECS = frozenset({"numpy", "PIL", "av", "soundfile"})
END_TO_END = (("tests", "live"), ("tests", "conformance"))
# What stands beside the contracts, with no weight.
SHARED = frozenset(
    {
        "services.logs",
        "services.registry",
        "services.schema",
        "services.secret_files",
        "services.tracing",
        "services.units",
    }
)

# What acts on this machine instead of asking the API: starting processes, building and fetching models.
ON_THIS_MACHINE = {
    "cli/up.py": {"services", "services.registry"},
    "cli/preflight.py": {"services.registry"},
    "cli/pulling.py": {"services.engine.hub", "services.errors", "services.registry"},
    "cli/settings.py": {"services.registry"},
    "deploy/build.py": {"services.registry"},
    "benchmarks/checkpoints.py": {
        "services.tiny",
        "services.tiny.image",
        "services.tiny.build",
        "services.tiny.folder",
        "services.tiny.workbench",
    },
    "benchmarks/llama.py": {  # where the worker looks for the tiny one, with its tokenizer
        "services.tiny.build",
        "services.tiny.folder",
        "services.tiny.vocabulary",
    },
    "benchmarks/writers.py": {  # the loop without the server
        "services.registry",
        "services.schema",
        "services.settings",
        "services.text.engine",
        "services.text.schema",
    },
    "benchmarks/exactness.py": {"services.engine.weights", "services.text.linear", "services.text.network"},
    "benchmarks/forwards.py": {
        "services.engine.weights",
        "services.text.adapters",
        "services.text.linear",
        "services.text.network",
    },
    "benchmarks/equality.py": {
        "services.engine.assembly",
        "services.engine.generation",
        "services.errors",
        "services.image.edit",
        "services.image.schema",
        "services.image.service",
        "services.settings",
    },
    "benchmarks/memory.py": {  # encoders without a model
        "services.audio.answers",
        "services.audio.schema",
        "services.encoders",
        "services.engine.events",
        "services.engine.outputs",
        "services.finals",
        "services.provenance",
    },
    "benchmarks/usage.py": {  # a log of a million rows would take a day to come about by HTTP
        "gateway.database.database",
        "gateway.usage.housekeeping",
        "gateway.usage.log",
        "gateway.usage.percentiles",
        "gateway.usage.queries",
        "gateway.usage.receipts",
        "gateway.usage.rollup",
        "gateway.usage.schema",
        "gateway.usage.summary",
        "services.schema",
    },
    "benchmarks/sizes.py": {"gateway.callers", "gateway.database.database", "gateway.limits"},  # likewise
    "benchmarks/overhead.py": {
        "services.engine.engine",
        "services.engine.generation",
        "services.engine.metrics",
        "services.engine.slots",
        "services.engine.stepper",
    },
}
# Modules whose import is meant to do something.
WITH_EFFECT = {
    "gateway/database/migrations/env.py",  # Alembic runs it
    "cli/__main__.py",  # a program
}


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the full name of every module that is imported, wherever that stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            yield node.lineno, name
            inner = [f"{name}.{alias.name}" for alias in node.names]
            yield from ((node.lineno, module) for module in inner if is_ours(module))


def at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that an import runs: all but the bodies of functions and what only a program does."""
    for node in ast.iter_child_nodes(tree):
        is_program = isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        if is_program or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        yield node
        yield from at_import(node)


def is_ours(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return name.split(".")[0] in OURS and (path.is_dir() or path.with_suffix(".py").is_file())


def complaints(path: PurePosixPath, source: str) -> list[str]:
    """Say which rules the module at `path` (relative to the repository) breaks."""
    tree = ast.parse(source)
    found = [
        f"{path}:{line} may not import {name}: {reason}"
        for line, name in imports(tree)
        for reason in [complaint(path, name)]
        if reason is not None
    ]
    if path.parts[0] in {"gateway", "services", "cli", "ui"} and str(path) not in WITH_EFFECT:
        found += [f"{path}:{line} has an effect when imported: {what}" for line, what in effects(path, tree)]
    return found


def complaint(path: PurePosixPath, name: str) -> str | None:
    """Say why the module at `path` may not import `name`, if it may not."""
    if name.startswith("."):
        return "imports are absolute"
    package, library = path.parts[0], name.split(".")[0]
    if package == "gateway":
        return of_gateway(name, library)
    if package == "services":
        return of_services(path, name, library)
    if package in {"cli", "ui", "benchmarks", "deploy"} or path.parts[:2] in END_TO_END:
        is_allowed = name in ON_THIS_MACHINE.get(str(path), ())
        is_own = library in {package, "tests"}
        return None if is_own or is_allowed or not is_ours(name) else "it reaches the system through the HTTP API"
    return None


def of_gateway(name: str, library: str) -> str | None:
    if library in MODELS | {"bentoml"}:
        return "the gateway knows no model and no BentoML"
    if library in {"cli", "ui", "deploy", "tests", "benchmarks"}:
        return "it stands above"
    is_contract = name in SHARED or name.endswith(".schema")
    is_package = name == "services" or name.removeprefix("services.") in MODALITIES
    if library == "services" and not is_contract and not is_package:
        return "of services, the gateway knows the contracts and the registry"
    return None


def of_services(path: PurePosixPath, name: str, library: str) -> str | None:
    folder, file = path.parts[1] if len(path.parts) > 2 else "", path.name
    if library in {"gateway", "ui", "cli", "deploy", "tests", "benchmarks", "fastapi"}:
        return "workers know nothing of the gateway"
    if file == "schema.py" and library not in sys.stdlib_module_names | {"pydantic"} and name not in SHARED_BY_SCHEMAS:
        return "a contract is the standard library and pydantic"
    if folder == "media" and library not in sys.stdlib_module_names | CODECS and not f"{name}.".startswith(OF_MEDIA):
        return "media is numpy and codecs"
    other = name.split(".")[1] if name.count(".") else ""
    if library == "services" and folder in MODALITIES and other in MODALITIES and other != folder:
        return "no modality knows another"
    if library == "bentoml" and file not in {"service.py", "cluster.py"} and str(path) not in WITH_BENTOML:
        return "BentoML is for services alone"
    is_engine = (folder in MODALITIES and file == "engine.py") or str(path) in PARTS_OF_ENGINES
    if library in MODELS and folder not in {"engine", "tiny"} and not is_engine:
        return "model libraries are for engines alone"
    return None


OF_MEDIA = "services.media."
SHARED_BY_SCHEMAS = {"services", "services.schema"}
PARTS_OF_ENGINES = {
    "services/mesh/surface.py",
    "services/text/network.py",
    "services/text/linear.py",
    "services/text/adapters.py",
    "services/text/rows.py",
    "services/text/prefixes.py",
    "services/text/rules.py",
    "services/text/sampling.py",
    "services/text/grammar.py",
    "services/text/writing.py",
}
WITH_BENTOML = {
    "services/worker.py",  # what the five services have in common
    "services/errors.py",
}

MIDDLEWARES = (
    ".add_asgi_middleware(Correlation)",
    ".add_asgi_middleware(EnvelopeMiddleware)",
    ".add_asgi_middleware(GatewayOnly)",
    ".add_asgi_middleware(JsonBodies, max_bytes=MAX_BODY_BYTES)",
    ".add_asgi_middleware(JsonBodies, max_bytes=MAX_BODY_BYTES, forms={CONVERSIONS})",
    ".add_asgi_middleware(JsonBodies, max_bytes=MAX_BODY_BYTES, forms={EDITS, CONVERSIONS})",
)


def effects(path: PurePosixPath, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield what an import would do beyond defining names."""
    for statement in tree.body:
        if isinstance(statement, ast.Expr) and not isinstance(statement.value, ast.Constant):
            text = ast.unparse(statement)
            if not (path.name == "service.py" and text.endswith(MIDDLEWARES)):
                yield statement.lineno, text
    for node in at_import(tree):
        if isinstance(node, ast.Attribute | ast.Call) and is_effect(node):
            yield node.lineno, ast.unparse(node)


def is_effect(node: ast.Attribute | ast.Call) -> bool:
    if isinstance(node, ast.Attribute):
        return ast.unparse(node) == "os.environ"
    return ast.unparse(node.func).split(".")[-1] in EFFECTS


EFFECTS = frozenset(
    {"getenv", "Settings", "basicConfig", "dictConfig", "setLevel", "addHandler", "from_pretrained", "device", "mkdir",
     "open", "read_text", "read_bytes", "write_text", "load_models", "start", "run", "manual_seed", "set_num_threads"}
)  # fmt: skip


def sources() -> list[PurePosixPath]:
    return [
        PurePosixPath(path.relative_to(ROOT).as_posix())
        for package in OURS
        for path in sorted((ROOT / package).rglob("*.py"))
    ]


# --- the rules hold ---


def test_every_module_keeps_to_its_layer() -> None:
    found = [line for path in sources() for line in complaints(path, (ROOT / path).read_text(encoding="utf-8"))]

    assert found == []


def reached_from(start: PurePosixPath) -> dict[str, str]:
    """Map what importing the module at `start` imports, directly or not, to the module of ours that does."""
    reached: dict[str, str] = {}
    waiting = [".".join(start.with_suffix("").parts)]
    seen: set[str] = set()
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        path = ROOT.joinpath(*module.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if not file.is_file():
            continue
        for node in at_import(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                for _, name in imports(ast.Module([node], [])):
                    reached.setdefault(name.split(".")[0], module)
                    waiting += [name] if name.split(".")[0] in OURS else []
    return reached


@pytest.mark.parametrize("path", [path for path in sources() if path.name == "service.py"], ids=str)
def test_importing_a_service_loads_no_model_library(path: PurePosixPath) -> None:
    """BentoML's parent process imports it as well: with torch at the top, memory is taken twice."""
    reached = reached_from(path)

    assert "bentoml" in reached
    assert {library: module for library, module in reached.items() if library in MODELS} == {}


@pytest.mark.parametrize("path", [path for path in sources() if path.parts[0] == "gateway"], ids=str)
def test_importing_the_gateway_loads_nothing_of_a_worker(path: PurePosixPath) -> None:
    reached = reached_from(path)

    assert {name: module for name, module in reached.items() if name in MODELS | CODECS | {"bentoml"}} == {}


def test_the_named_exceptions_are_still_needed() -> None:
    existing = {str(path) for path in sources()}
    for path, allowed in ON_THIS_MACHINE.items():
        if path in existing:
            tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
            assert {name for _, name in imports(tree)} & allowed, path


# --- the rules have teeth ---


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("gateway/relay.py", "import bentoml"),
        ("gateway/relay.py", "import torch.nn"),
        ("gateway/relay.py", "def late():\n    from transformers import AutoModel"),
        ("gateway/relay.py", "import diffusers as library"),
        ("gateway/relay.py", "from services.engine.engine import Engine"),
        ("gateway/relay.py", "from services import responses"),
        ("gateway/relay.py", "import services.errors"),
        ("gateway/routes/chat.py", "from services.text.service import TextService"),
        ("gateway/relay.py", "from cli.settings import Settings"),
        ("services/responses.py", "import gateway"),
        ("services/responses.py", "from fastapi import FastAPI"),
        ("services/responses.py", "import ui"),
        ("services/text/engine.py", "from services.audio.sentences import split_sentences"),
        ("services/text/service.py", "import services.image.schema"),
        ("services/text/service.py", "from services import image"),
        ("services/text/schema.py", "import numpy"),
        ("services/text/schema.py", "from services.registry import Task"),
        ("services/schema.py", "from starlette.requests import Request"),
        ("services/mesh/schema.py", "from services.text.schema import Content"),
        ("services/responses.py", "import bentoml"),
        ("services/engine/engine.py", "from bentoml import service"),
        ("services/text/engine.py", "import bentoml"),
        ("services/encoders.py", "import torch"),
        ("services/text/service.py", "def load():\n    import torch"),
        ("services/text/answers.py", "import transformers"),
        ("services/media/wav.py", "from services.errors import InvalidRequest"),
        ("services/media/wav.py", "import torch"),
        ("services/media/wav.py", "import starlette"),
        ("cli/chat.py", "from services.text.schema import ChatRequest"),
        ("cli/usage.py", "from gateway.usage.log import UsageLog"),
        ("ui/app.py", "from gateway.settings import Settings"),
        ("benchmarks/relay.py", "from gateway.app import create_app"),
        ("tests/live/test_chat.py", "from services.schema import Seed"),
        ("gateway/relay.py", "from .errors import GatewayError"),
        ("services/text/engine.py", "from . import schema"),
        ("tests/test_docs.py", "from ..gateway import app"),
        ("gateway/app.py", "settings = Settings()"),
        ("gateway/app.py", "import os\nHOST = os.environ['HOST']"),
        ("gateway/app.py", "import os\nHOST = os.getenv('HOST')"),
        ("gateway/app.py", "import logging\nlogging.basicConfig()"),
        ("services/worker.py", "import logging\nlogging.getLogger('a').setLevel(10)"),
        ("services/text/engine.py", "import torch\nDEVICE = torch.device('cuda')"),
        ("services/text/engine.py", "import torch\ntorch.manual_seed(0)"),
        ("services/text/engine.py", "class A:\n    network = Network.from_pretrained('a')"),
        ("services/registry.py", "MODELS = load_models()"),
        ("services/text/service.py", "TextService.add_asgi_middleware(Another)"),
        ("services/text/service.py", "if True:\n    settings = Settings()"),
    ],
)
def test_a_broken_rule_is_found(path: str, source: str) -> None:
    assert len(complaints(PurePosixPath(path), source)) > 0


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("gateway/relay.py", "from services.schema import envelope\nfrom services.registry import WORKERS"),
        ("gateway/routes/chat.py", "from services.text.schema import ChatRequest\nfrom services.units import most"),
        ("services/text/schema.py", "import re\nfrom pydantic import Field\nfrom services.schema import Body"),
        ("services/text/service.py", "import bentoml\nfrom services.text.schema import ChatJob"),
        ("services/text/service.py", "def make():\n    from services.text.engine import TextGenerator"),
        ("services/worker.py", "import bentoml"),
        ("services/text/engine.py", "import torch\nfrom services.engine.engine import Result"),
        ("services/tiny/text.py", "import torch"),
        ("services/media/wav.py", "import struct\nimport numpy as np"),
        ("services/media/obj.py", "from services.media.triangles import check"),
        ("cli/up.py", "from services.registry import WORKERS"),
        ("cli/chat.py", "import httpx\nfrom cli.errors import NoAnswer"),
        ("gateway/app.py", "def create_app():\n    return Settings()"),
        ("services/tiny/__main__.py", "if __name__ == '__main__':\n    run()"),
    ],
)
def test_what_keeps_to_the_rules_is_let_be(path: str, source: str) -> None:
    assert complaints(PurePosixPath(path), source) == []
