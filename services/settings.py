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

    model_config = SettingsConfigDict(env_prefix="ATELIER_", frozen=True, extra="ignore", use_attribute_docstrings=True)

    profile: Profile = "tiny"
    data_dir: Path = Path(".atelier")
    models_file: Path | None = None
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, `mps`; `auto` takes the first accelerator"""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """`float32`, `float16`, `bfloat16`; `auto` is `float32` on a CPU, `float16` elsewhere; a model's own `dtype` comes
    first
    """
    compile: bool = False
    """compile the denoisers with `torch.compile`; the first requests of each shape wait for it"""
    accept_licences: Annotated[frozenset[str], NoDecode] = frozenset()
    """comma-separated ids of models whose licence the operator accepts, and `model:adapter` of adapters"""
    queue_size: int = Field(default=32, ge=1, le=900)
    """requests that may wait for a model, at most 900; one more gets 429"""
    max_batch_size: int | None = Field(default=None, ge=1)
    """requests that a model may have in progress at once, and so the largest batch; unset: 32 chats, 8 of anything else
    (4 films)
    """
    max_step_seconds: float = Field(default=2.0, gt=0)
    """what a forward that several requests share may take; a smaller batch is chosen beyond"""
    max_memory_mb: int | None = Field(default=None, ge=1)
    """what requests in progress may take by their estimates; unset: 80 % of what is free once the model is loaded"""
    text_packing: Literal["auto", "none", "float16", "int8"] = "auto"
    """how a chat model's linear layers are kept on a CPU: `float16`, `int8` (half of that, faster, less exact: see
    [benchmarks](benchmarks.md)), `none` (as `ATELIER_DTYPE` says); `auto` is `float16` on a CPU where `ATELIER_DTYPE`
    is `auto`. A model's [`quantisation`](models.md#fewer-bits) comes before it
    """
    prefix_cache_mb: int = Field(default=256, ge=0)
    """what the text worker keeps of how prompts begin; 0: nothing"""
    max_models: int | None = Field(default=None, ge=1)
    """models that a worker has in memory at once; unset: all ([who leaves](models.md#in-memory))"""
    max_models_mb: int | None = Field(default=None, ge=1)
    """10⁶ bytes that their weights may take together; unset: any"""
    keep_alive: float | None = Field(default=None, gt=0)
    """seconds until a model that nobody uses leaves memory; unset: it stays"""
    cold_start: Literal["wait", "refuse"] = "wait"
    """a request for a model that is not in memory waits for it as long as its deadline lasts (`wait`), or has it loaded
    and gets 503 with `Retry-After` (`refuse`)
    """
    drain_file: Path | None = None
    """as long as this file is there, `/readyz` says 503 and all else is served as before: what whoever stops a worker
    makes first, so that gateways send it nothing more; a start deletes it
    """
    log_format: LogFormat = "text"
    max_upload_bytes: int = Field(default=25_000_000, ge=1)
    max_image_pixels: int = Field(default=40_000_000, ge=1)
    """pixels of an uploaded picture"""
    receipts_url: str = ""
    """the gateway's route for what was made, such as `http://gateway:8000/internal/receipts`; empty: nobody is told.
    `atelier up` sets it
    """
    internal_token: SecretStr = SecretStr("")

    @field_validator("models_file", "drain_file", mode="before")
    @classmethod
    def read_empty(cls, value: object) -> object:
        """Read an empty variable as none: an empty path is the folder that one is in."""
        return value or None

    @field_validator("accept_licences", mode="before")
    @classmethod
    def split_commas(cls, value: object) -> object:
        """Read `a,b` as two ids."""
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
