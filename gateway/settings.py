"""Everything an operator may set about the gateway, read once from `ATELIER_*` variables."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from services.registry import WORKERS, Task


def loopback(task: Task) -> str:
    """Where a worker listens that was started on this machine without further ado."""
    return f"http://127.0.0.1:{WORKERS[task].port}"


def split(listed: str) -> list[str]:
    """What is between the commas."""
    return [part.strip() for part in listed.split(",") if part.strip()]


class Settings(BaseSettings):
    """Settings of the gateway; `docs/settings.md` lists them with those of the workers."""

    model_config = SettingsConfigDict(env_prefix="ATELIER_", frozen=True, extra="ignore")

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    data_dir: Path = Path(".atelier")
    database_url: str = ""  # SQLAlchemy URL with an async driver; empty: atelier.sqlite3 in the data folder
    text_url: str = loopback("text")  # comma-separated, of all replicas; empty: this modality is not served
    audio_url: str = loopback("audio")
    image_url: str = loopback("image")
    video_url: str = loopback("video")
    mesh_url: str = loopback("mesh")
    openai_base_url: str = ""  # of any OpenAI-compatible server, such as https://host/v1; empty: no provider
    openai_api_key: SecretStr = SecretStr("")
    openai_model: str = "gpt-4o-mini"
    providers_file: Path | None = None  # TOML; docs/providers.md explains it
    connect_timeout: float = Field(default=2, gt=0)  # seconds
    deadline: float = Field(default=600, gt=0)  # seconds until the first byte
    idle_timeout: float = Field(default=300, gt=0)  # seconds between two chunks
    probe_interval: float = Field(default=2, gt=0)  # seconds; how often a silent worker is asked whether it lives
    max_upstream_connections: int = Field(default=512, ge=1)
    max_upload_bytes: int = Field(default=25_000_000, ge=1)
    cors_origins: Annotated[frozenset[str], NoDecode] = frozenset()  # comma-separated; empty: no browser from elsewhere

    @field_validator("cors_origins", mode="before")
    @classmethod
    def split_commas(cls, value: object) -> object:
        """Read `a,b` as two origins."""
        return split(value) if isinstance(value, str) else value

    @property
    def database(self) -> str:
        """The URL of the database."""
        return self.database_url or f"sqlite+aiosqlite:///{self.data_dir.absolute() / 'atelier.sqlite3'}"

    @property
    def workers(self) -> dict[Task, tuple[str, ...]]:
        """The base URLs of each modality that is served."""
        urls: dict[Task, str] = {
            "text": self.text_url,
            "audio": self.audio_url,
            "image": self.image_url,
            "video": self.video_url,
            "mesh": self.mesh_url,
        }
        replicas = {task: tuple(url.rstrip("/") for url in split(listed)) for task, listed in urls.items()}
        return {task: found for task, found in replicas.items() if found}
