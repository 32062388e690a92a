"""What a user may set about `atelier up`, read once from `ATELIER_*` variables."""

import os
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from cli.errors import Refused
from services.registry import WORKERS, Model, Profile, Task, load_models, local_models_of


class Settings(BaseSettings):
    """Settings of `up`; workers and gateway, which it starts, read their own from the same variables."""

    model_config = SettingsConfigDict(
        env_prefix="ATELIER_", frozen=True, extra="ignore", use_attribute_docstrings=True, env_ignore_empty=True
    )

    profile: Profile = "tiny"
    data_dir: Path = Path(".atelier")
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    text_port: int = Field(default=WORKERS["text"].port, ge=1, le=65535)
    """port of the text worker that is started; where `ATELIER_TEXT_URL` is set none is, as it runs elsewhere"""
    audio_port: int = Field(default=WORKERS["audio"].port, ge=1, le=65535)
    """likewise of the audio worker"""
    image_port: int = Field(default=WORKERS["image"].port, ge=1, le=65535)
    """likewise of the image worker"""
    video_port: int = Field(default=WORKERS["video"].port, ge=1, le=65535)
    """likewise of the video worker"""
    mesh_port: int = Field(default=WORKERS["mesh"].port, ge=1, le=65535)
    """likewise of the mesh worker"""
    ui_port: int = Field(default=8501, ge=1, le=65535)
    """port of the [studio](studio.md)"""
    models_file: Path | None = None
    admin_key_file: Path | None = None
    min_free_mb: int = Field(default=500, ge=0)
    """free space the data folder's disk must have"""
    stop_seconds: float = Field(default=10, gt=0)
    """how long a stop may take before what still runs is killed; at least the gateway's two times of draining and 4"""

    @classmethod
    def read(cls) -> Self:
        """Read the environment.

        Raises:
            Refused: a value does not fit; the message names its variable.
        """
        try:
            return cls()
        except ValidationError as error:
            first = error.errors()[0]
            name = "_".join(map(str, ("ATELIER", *first["loc"]))).upper()
            raise Refused(f"{name}: {first['msg']}") from error

    @property
    def models(self) -> tuple[Model, ...]:
        """The registry.

        Raises:
            Refused: the operator's file cannot be read, or something in it does not fit.
        """
        try:
            return load_models(self.models_file, self.profile)
        except ValueError as error:
            raise Refused(f"ATELIER_MODELS_FILE: {error}") from error

    @property
    def worker_ports(self) -> dict[Task, int]:
        """The port of each worker that runs on this machine.

        One whose `ATELIER_*_URL` is set runs elsewhere; one whose models others serve has nothing to do.
        """
        models = self.models
        ports: dict[Task, int] = {
            "text": self.text_port,
            "audio": self.audio_port,
            "image": self.image_port,
            "video": self.video_port,
            "mesh": self.mesh_port,
        }
        return {
            task: port
            for task, port in ports.items()
            if f"ATELIER_{task.upper()}_URL" not in os.environ and local_models_of(task, models)
        }
