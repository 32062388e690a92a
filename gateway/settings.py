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
from gateway.urls import check_url, check_worker_url
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
        use_attribute_docstrings=True,
        hide_input_in_errors=True,  # it may hold a password
    )

    host: str = "127.0.0.1"
    """address to listen on; one that other machines can reach needs a key first"""
    port: int = Field(default=8000, ge=0, le=65535)
    """port to listen on"""
    public_url: str = ""
    """where callers reach the gateway, such as `https://api.example.org`: links in answers (`response_format=url`)
    begin with it; empty: with what the request's own `Host` says
    """
    data_dir: Path = Path(".atelier")
    """folder of the database, the tiny checkpoints, logs"""
    database_url: str = ""
    """SQLAlchemy URL with an async driver, such as `postgresql+asyncpg://…` where several gateways share it; empty:
    `atelier.sqlite3` in the data folder
    """
    artefacts_url: str = ""
    """where results of jobs are kept: a path, or `s3://bucket/prefix` with `AWS_*` variables
    ([artefacts](artefacts.md)); empty: `artefacts` in the data folder
    """
    text_url: str = loopback("text")
    """where the text workers are: several comma-separated URLs are replicas, and `dns+http://text:3000` is one for
    each address that the name has, looked up with every probe; empty: this modality is not served
    """
    audio_url: str = loopback("audio")
    """likewise the audio workers"""
    image_url: str = loopback("image")
    """likewise the image workers"""
    video_url: str = loopback("video")
    """likewise the video workers"""
    mesh_url: str = loopback("mesh")
    """likewise the mesh workers"""
    openai_base_url: str = ""
    """an OpenAI-compatible server, such as `https://host/v1`; empty: no provider"""
    openai_api_key: SecretStr = SecretStr("")
    """its key"""
    openai_model: str = "gpt-4o-mini"
    """the model asked for, and its id among ours"""
    providers_file: Path | None = None
    """a TOML file of outside models: [providers](providers.md); empty: none but the one above"""
    connect_timeout: float = Field(default=2, gt=0)
    """seconds to connect to a worker"""
    deadline: float = Field(default=600, gt=0)
    """seconds that a generation may take; the worker stops the model then, also in the middle of a stream"""
    idle_timeout: float = Field(default=300, gt=0)
    """seconds between two pieces of an answer"""
    probe_interval: float = Field(default=2, gt=0)
    """seconds between two looks at every replica (give or take a quarter), and at a worker that has not answered yet"""
    log_format: LogFormat = "text"
    """`json`: one object a line with `time`, `level`, `logger`, `message`, `request_id`, `trace_id`"""
    drain_seconds: float = Field(default=0, ge=0)
    """seconds after SIGTERM in which all is still served while `/readyz` says 503 `draining`: what a load balancer
    needs to notice
    """
    drain_patience: float = Field(default=5, ge=0)
    """seconds after that in which new requests get 503 and those under way may end; then they are cut"""
    policy_file: Path | None = None
    """TOML file of what may be asked for: [policy](policy.md); unset: anything"""
    allowed_networks: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = ()
    """comma-separated networks, such as `10.1.0.0/16`, that URLs which callers name ([webhooks](artefacts.md#webhooks),
    pictures) may lead to although they are not public
    """
    image_urls: bool = False
    """whether pictures are fetched from the http(s) URLs that bodies name: from public addresses, at most
    `ATELIER_MAX_UPLOAD_BYTES`, within 15 seconds and 3 redirects; data URLs are always read
    """
    moderation_key: SecretStr = SecretStr("")
    """the key that the policy's outside moderation is asked with"""
    signing_key: SecretStr = SecretStr("")
    """secret of signed URLs and of webhooks, at least 32 characters, the same for all gateways. Of several with commas
    the first signs, and links of all are known ([how to change it](operations.md#rotating-keys)); empty: `signing.key`
    in the data folder, made at the first start
    """
    trust_traceparent: bool = False
    """whether a caller's `traceparent` is honoured; else every request begins a trace of its own"""
    max_upstream_connections: int = Field(default=512, ge=1)
    """connections to all workers"""
    max_upload_bytes: int = Field(default=25_000_000, ge=1)
    """size of an uploaded file"""
    internal_token: SecretStr = SecretStr("")
    """what gateway and workers know each other by, the same on both sides: workers then work for the gateway alone, and
    it takes their receipts. Of several with commas the first is shown, and all are known ([how to change
    it](operations.md#rotating-keys)). `atelier up` makes one for each run; set it where workers run elsewhere
    """
    log_content: Kept = "none"
    """what the usage log keeps of the content of keys that [say nothing else](keys.md): `prompts`, `all` (also the text
    that was answered) or nothing; e-mail addresses, keys and card numbers are taken out
    """
    log_content_chars: int = Field(default=4000, ge=1, le=MAX_CONTENT)
    """characters kept of a prompt and of an answer"""
    redact_patterns: Patterns = ()
    r"""[RE2](https://github.com/google/re2/wiki/Syntax) patterns of what else is taken out, as a JSON list such as
    `["ACME-\\d+"]`
    """
    usage_retention_days: int = Field(default=365, ge=0)
    """days that rows of the usage log stay; 0: for ever. The daily totals stay in any case"""
    cors_origins: Annotated[frozenset[str], NoDecode] = frozenset()
    """comma-separated origins whose pages may call; empty: none"""
    admin_key_file: Path | None = None
    """file of the operator's key, written where it is absent (mode 0600); see [keys](keys.md)"""
    allowed_hosts: Annotated[frozenset[str], NoDecode] = frozenset()
    """comma-separated names by which the gateway may be called, besides this machine's own, while there are no keys"""
    key_cache_seconds: float = Field(default=5, ge=0)
    """how long a gateway believes what the database said of a key: as long may one live on that another gateway
    revoked
    """
    redis_url: SecretStr = SecretStr("")
    """`redis://` or `rediss://`: where several gateways count requests and streams of their keys together; empty: each
    counts for itself
    """
    redis_down: WhenDown = "allow"
    """what becomes of requests of limited keys while Redis is down: `allow` (uncounted) or `refuse` (503)"""
    job_concurrency: int = Field(default=8, ge=1)
    """[jobs](jobs.md) of a modality that this gateway works on at once"""
    job_concurrency_by_task: Mapping[Task, Annotated[int, Field(ge=0)]] = {}
    """the same for some, as JSON: `{"video": 2, "text": 0}`; 0 leaves them to other gateways"""
    job_patience: float = Field(default=86_400, gt=0)
    """seconds from a job's acceptance until it is given up"""
    job_retention_days: int = Field(default=7, ge=0)
    """days that jobs and their files stay after their end; 0: for ever"""
    profile: Profile = "tiny"
    """`tiny`: checkpoints built here; `hub`: real weights. Gateway: budgets count with the models' defaults in it"""
    models_file: Path | None = None
    """a TOML file of [your own models](models.md#your-own-file), or of others in place of ours"""
    prices_file: Path | None = None
    """TOML file of what a unit costs, for [budgets](keys.md#budgets) in money; empty: nothing costs anything"""
    open_metrics: bool = False
    """`/metrics` asks for no key although other machines can reach it"""

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

    @field_validator("text_url", "audio_url", "image_url", "video_url", "mesh_url")
    @classmethod
    def check_urls(cls, value: str) -> str:
        """Refuse where nobody could be asked."""
        for url in split(value):
            check_worker_url(url)
        return value

    @field_validator("openai_base_url")
    @classmethod
    def check_provider(cls, value: str) -> str:
        """Likewise."""
        return check_url(value) if value else value

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
