"""Everything an operator may set about the gateway, read once from `ATELIER_*` variables."""

from collections.abc import Mapping
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from gateway.auth import is_loopback
from gateway.limits import WhenDown
from gateway.patterns import Patterns
from gateway.urls import check_url
from gateway.usage.content import Kept
from gateway.usage.schema import MAX_CONTENT
from services.logs import LogFormat
from services.registry import WORKERS, Profile, Task
from services.secret_files import SettingsWithFiles, listed


def loopback(task: Task) -> str:
    """Where a worker listens that was started on this machine without further ado."""
    return f"http://127.0.0.1:{WORKERS[task].port}"


def split(listed: str) -> list[str]:
    """What is between the commas."""
    return [part.strip() for part in listed.split(",") if part.strip()]


class Settings(SettingsWithFiles):
    """Settings of the gateway; `docs/settings.md` lists them with those of the workers."""

    model_config = SettingsConfigDict(
        env_prefix="ATELIER_",
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,  # it may hold a password
    )

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    public_url: str = ""  # where callers reach the gateway; empty: as the request's own Host header has it
    data_dir: Path = Path(".atelier")
    database_url: str = ""  # SQLAlchemy URL with an async driver; empty: atelier.sqlite3 in the data folder
    artefacts_url: str = ""  # where results are kept: a path or s3://bucket/prefix; empty: artefacts in the data folder
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
    log_format: LogFormat = "text"
    drain_seconds: float = Field(default=0, ge=0)  # until new work is refused; balancers read /readyz meanwhile
    drain_patience: float = Field(default=5, ge=0)  # seconds more for what is under way; what lasts longer is cut
    policy_file: Path | None = None  # TOML; docs/policy.md; unset: anything may be asked for
    allowed_networks: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = ()  # that callers' URLs may lead to
    image_urls: bool = False  # whether pictures are fetched from the http(s) URLs that callers name
    moderation_key: SecretStr = SecretStr("")  # that the moderation of the policy file is asked with
    signing_key: SecretStr = SecretStr("")  # of signed URLs, shared by gateways; empty: a file in the data folder
    trust_traceparent: bool = False  # whether callers say which trace their requests belong to
    max_upstream_connections: int = Field(default=512, ge=1)
    max_upload_bytes: int = Field(default=25_000_000, ge=1)
    internal_token: SecretStr = SecretStr("")  # shared with the workers; empty: their receipts are refused
    log_content: Kept = "none"  # of what callers ask and are answered, in the usage log
    log_content_chars: int = Field(default=4000, ge=1, le=MAX_CONTENT)  # of each
    redact_patterns: Patterns = ()  # as JSON: what the log must not hold besides our own
    usage_retention_days: int = Field(default=365, ge=0)  # how long usage rows stay; 0: for ever
    cors_origins: Annotated[frozenset[str], NoDecode] = frozenset()  # comma-separated; empty: no browser from elsewhere
    admin_key_file: Path | None = None  # the operator's key; written where it is absent
    allowed_hosts: Annotated[frozenset[str], NoDecode] = frozenset()  # comma-separated; while there are no keys
    key_cache_seconds: float = Field(default=5, ge=0)  # how long a revoked key lives on in another gateway
    redis_url: SecretStr = SecretStr("")  # where several gateways count together; empty: each counts for itself
    redis_down: WhenDown = "allow"  # what becomes of requests of limited keys that cannot be counted
    job_concurrency: int = Field(default=8, ge=1)  # jobs of a modality at work at once, by this gateway
    job_concurrency_by_task: Mapping[Task, Annotated[int, Field(ge=0)]] = {}  # as JSON: {"video": 2}; 0: by others
    job_patience: float = Field(default=86_400, gt=0)  # seconds from a job's acceptance until it is given up
    job_retention_days: int = Field(default=7, ge=0)  # how long jobs and their files stay after their end; 0: for ever
    profile: Profile = "tiny"  # of the workers: whose defaults count for what a request leaves out
    models_file: Path | None = None  # TOML, also the workers': models of the operator's own, or in place of ours
    prices_file: Path | None = None  # TOML: what a unit costs
    open_metrics: bool = False  # /metrics without a key although other machines can reach it

    @field_validator("cors_origins", "allowed_hosts", "allowed_networks", mode="before")
    @classmethod
    def split_commas(cls, value: object) -> object:
        """Read `a,b` as two origins."""
        return split(value) if isinstance(value, str) else value

    @field_validator("public_url")
    @classmethod
    def check_is_url(cls, value: str) -> str:
        """Refuse what no browser could follow; links are put behind it."""
        parts = urlsplit(value)
        if value and (parts.scheme not in {"http", "https"} or not parts.netloc or parts.query or parts.fragment):
            raise ValueError("must be an http or https URL, such as https://api.example.org")
        return value.rstrip("/")

    @field_validator("text_url", "audio_url", "image_url", "video_url", "mesh_url", "openai_base_url")
    @classmethod
    def check_urls(cls, value: str) -> str:
        """Refuse where nobody could be asked."""
        for url in split(value):
            check_url(url)
        return value

    @field_validator("openai_api_key", "moderation_key", mode="before")
    @classmethod
    def strip(cls, value: object) -> object:
        """Leave out the line feed that ends the file it came from: no header may hold one."""
        return value.strip() if isinstance(value, str) else value

    @field_validator("signing_key")
    @classmethod
    def check_length(cls, value: SecretStr) -> SecretStr:
        """Refuse what could be guessed."""
        if any(len(key) < 32 for key in listed(value)):
            raise ValueError("must have at least 32 characters, each of them if there are several")
        return value

    @property
    def signing_key_file(self) -> Path:
        """Where the secret of signed URLs is kept, if the operator names none."""
        return self.data_dir / "signing.key"

    @field_validator("admin_key_file", "models_file", "prices_file", "policy_file", "providers_file", mode="before")
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
    def artefacts_dir(self) -> Path:
        """Where results are kept if the operator names no other place, or else where they are written first."""
        return self.data_dir / "artefacts"

    @property
    def job_places(self) -> dict[Task, int]:
        """How many jobs of each task may be at work at once."""
        return {task: self.job_concurrency_by_task.get(task, self.job_concurrency) for task in WORKERS}

    @property
    def job_retention(self) -> timedelta | None:
        """How long jobs stay after their end; None: for ever."""
        return timedelta(days=self.job_retention_days) if self.job_retention_days else None

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the gateway."""
        return is_loopback(self.host)

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
