"""What may be set about the studio, read from `ATELIER_*` variables; no key is among it."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Settings of the studio."""

    model_config = SettingsConfigDict(
        env_prefix="ATELIER_", frozen=True, extra="ignore", use_attribute_docstrings=True, env_ignore_empty=True
    )

    url: str = "http://127.0.0.1:8000"
    """the gateway, `/v1` or not; also that of the commands, where `--url` goes before it"""
    ui_host: str = "127.0.0.1"
    """address that `python -m ui` listens on; the studio of `atelier up` is on loopback"""
    ui_port: int = Field(default=8501, ge=1, le=65535)
