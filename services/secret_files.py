"""Settings that are secret: they may come from files, and there may be several of one; knows no setting."""

import os
from pathlib import Path

from pydantic import SecretStr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SecretsSettingsSource
from pydantic_settings.exceptions import SettingsError

FOLDER = "ATELIER_SECRETS_DIR"


def listed(secrets: SecretStr) -> tuple[str, ...]:
    """What is between the commas: the first is used, and each is known, so that one may follow the other."""
    return tuple(filter(None, (each.strip() for each in secrets.get_secret_value().split(","))))


class NoFolder(SettingsError):
    """What should hold the files is no folder."""


class SettingsWithFiles(BaseSettings):
    """Reads a variable that is not set from the file of its name in the folder that `ATELIER_SECRETS_DIR` names."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Say what goes before what.

        Raises:
            NoFolder: the folder is not there.
        """
        folder = os.environ.get(FOLDER)
        if not folder:
            return init_settings, env_settings
        if not Path(folder).is_dir():
            raise NoFolder(f"{FOLDER}: {folder} is no folder")
        return init_settings, env_settings, SecretsSettingsSource(settings_cls, secrets_dir=folder)
