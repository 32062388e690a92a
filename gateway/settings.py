"""Everything an operator may set about the gateway, read once from `ATELIER_*` variables."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gateway.auth import is_loopback
from gateway.limits import WhenDown
from services.registry import WORKERS, Profile, Task


def loopback(task: Task) -> str:
    """Where a worker listens that was started on this machine without further ado."""
    return f"http://127.0.0.1:{WORKERS[task].port}"


class Settings(BaseSettings):
    """Settings of the gateway; `docs/settings.md` lists them with those of the workers."""

    model_config = SettingsConfigDict(
        env_prefix="ATELIER_",
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,  # it may hold a password
    )

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    data_dir: Path = Path(".atelier")
    database_url: str = ""  # SQLAlchemy URL with an async driver; empty: atelier.sqlite3 in the data folder
    text_url: str = loopback("text")  # an empty URL: this modality is not served
    audio_url: str = loopback("audio")
    image_url: str = loopback("image")
    video_url: str = loopback("video")
    mesh_url: str = loopback("mesh")
    openai_base_url: str = ""  # of any OpenAI-compatible server, such as https://host/v1; empty: no provider
    openai_api_key: SecretStr = SecretStr("")
    openai_model: str = "gpt-4o-mini"
    connect_timeout: float = Field(default=2, gt=0)  # seconds
    deadline: float = Field(default=600, gt=0)  # seconds until the first byte
    idle_timeout: float = Field(default=300, gt=0)  # seconds between two chunks
    probe_interval: float = Field(default=2, gt=0)  # seconds; how often a silent worker is asked whether it lives
    max_upstream_connections: int = Field(default=512, ge=1)
    max_upload_bytes: int = Field(default=25_000_000, ge=1)
    cors_origins: Annotated[frozenset[str], NoDecode] = frozenset()  # comma-separated; empty: no browser from elsewhere
    admin_key_file: Path | None = None  # the operator's key; written where it is absent
    allowed_hosts: Annotated[frozenset[str], NoDecode] = frozenset()  # comma-separated; while there are no keys
    key_cache_seconds: float = Field(default=5, ge=0)  # how long a revoked key lives on in another gateway
    redis_url: SecretStr = SecretStr("")  # where several gateways count together; empty: each counts for itself
    redis_down: WhenDown = "allow"  # what becomes of requests of limited keys that cannot be counted
    profile: Profile = "tiny"  # of the workers: whose defaults count for what a request leaves out
    prices_file: Path | None = None  # TOML: what a unit costs
    open_metrics: bool = False  # /metrics without a key although other machines can reach it

    @field_validator("cors_origins", "allowed_hosts", mode="before")
    @classmethod
    def split_commas(cls, value: object) -> object:
        """Read `a,b` as two origins."""
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("admin_key_file", "prices_file", mode="before")
    @classmethod
    def read_empty(cls, value: object) -> object:
        """Read an empty variable as none: an empty path is the folder that one is in."""
        return value or None

    @field_validator("redis_url")
    @classmethod
    def check_scheme(cls, value: SecretStr) -> SecretStr:
        """Refuse what is no address of a Redis."""
        if value and not value.get_secret_value().startswith(("redis://", "rediss://")):
            raise ValueError("must begin with redis:// or rediss://")
        return value

    @property
    def database(self) -> str:
        """The URL of the database."""
        return self.database_url or f"sqlite+aiosqlite:///{self.data_dir.absolute() / 'atelier.sqlite3'}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the gateway."""
        return is_loopback(self.host)

    @property
    def workers(self) -> dict[Task, str]:
        """The base URL of each modality that is served."""
        urls: dict[Task, str] = {
            "text": self.text_url,
            "audio": self.audio_url,
            "image": self.image_url,
            "video": self.video_url,
            "mesh": self.mesh_url,
        }
        return {task: url.rstrip("/") for task, url in urls.items() if url}
