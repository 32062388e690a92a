"""What an operator may set about a worker, read once from `ATELIER_*` when its service is made."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from services.logs import LogFormat
from services.registry import Profile
from services.secret_files import SettingsWithFiles


class Settings(SettingsWithFiles):
    """Settings of one worker; `docs/settings.md` lists them with those of the gateway."""

    model_config = SettingsConfigDict(env_prefix="ATELIER_", frozen=True, extra="ignore")

    profile: Profile = "tiny"
    data_dir: Path = Path(".atelier")
    models_file: Path | None = None  # TOML: models of the operator's own, or in place of ours
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    compile: bool = False  # the denoisers, by torch.compile; the first requests of each shape wait for it
    accept_licences: Annotated[frozenset[str], NoDecode] = frozenset()
    queue_size: int = Field(default=32, ge=1, le=900)  # requests that may wait; one more is refused
    max_batch_size: int | None = Field(default=None, ge=1)  # requests in progress at once; None: the modality's own
    max_step_seconds: float = Field(default=2.0, gt=0)  # of a forward that several share
    max_memory_mb: int | None = Field(default=None, ge=1)  # for requests in progress; unset: most of what is free
    text_packing: Literal["auto", "none", "float16", "int8"] = "auto"  # of chat models' linear layers, on a CPU
    prefix_cache_mb: int = Field(default=256, ge=0)  # of the text worker, for how prompts begin; 0: none
    max_models: int | None = Field(default=None, ge=1)  # in memory at once; None: all
    max_models_mb: int | None = Field(default=None, ge=1)  # of their weights
    keep_alive: float | None = Field(
        default=None, gt=0
    )  # seconds until a model that nobody uses leaves; None: it stays
    cold_start: Literal["wait", "refuse"] = "wait"  # what becomes of a request for a model that is not in memory
    log_format: LogFormat = "text"
    max_upload_bytes: int = Field(default=25_000_000, ge=1)
    max_image_pixels: int = Field(default=40_000_000, ge=1)
    receipts_url: str = ""  # the gateway's route for what was made; empty: nobody is told
    internal_token: SecretStr = SecretStr("")  # shared with the gateway; empty: anybody may ask for generations

    @field_validator("models_file", mode="before")
    @classmethod
    def read_empty(cls, value: object) -> object:
        """Read an empty variable as none: an empty path is the folder that one is in."""
        return value or None

    @field_validator("accept_licences", mode="before")
    @classmethod
    def split_commas(cls, value: object) -> object:
        """Read `a,b` as two ids."""
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
