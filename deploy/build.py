"""Builds a bento of each worker, as bentofile.yaml says; `make build` runs it, BENTOML_HOME says where they go."""

import os
import sys

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")  # read when bentoml is imported

import bentoml
import yaml
from environment import ROOT

from services.registry import WORKERS


def main() -> None:
    """Build the five."""
    options = yaml.safe_load((ROOT / "bentofile.yaml").read_text(encoding="utf-8"))
    for task, worker in WORKERS.items():
        bento = bentoml.build(worker.target, name=task, build_ctx=str(ROOT), **options)
        sys.stdout.write(f"{bento.tag}\n")


if __name__ == "__main__":
    main()
