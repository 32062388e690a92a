"""Settings that may also come from files, as containers are given secrets; knows no setting."""

import os
from pathlib import Path

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SecretsSettingsSource
from pydantic_settings.exceptions import SettingsError

FOLDER = "ATELIER_SECRETS_DIR"


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
