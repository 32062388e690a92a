"""Makes the secrets that docker-compose.yml reads, where they are absent, in a folder that this user alone may enter.

Runs on any Python 3: the containers have their own.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from secrets import token_hex, token_urlsafe

ROOT = Path(__file__).resolve().parent.parent


def main(folder: Path = ROOT / "secrets") -> None:
    """Make what is missing, and say where the first key is."""
    folder.mkdir(mode=0o700, exist_ok=True)
    password = keep(folder / "postgres_password", token_hex(32))
    others: Mapping[str, str] = {
        "database_url": f"postgresql+asyncpg://atelier:{password}@postgres/atelier",
        "internal_token": token_urlsafe(32),
        "signing_key": token_urlsafe(32),
        "admin_key": f"atl_{token_hex(8)}_{token_urlsafe(32)}",
        "hf_token": "",  # the operator's, who may have none
    }
    for name, text in others.items():
        keep(folder / name, text)
    sys.stdout.write(f"The first admin key is in {folder / 'admin_key'}\n")


def keep(file: Path, text: str) -> str:
    """Return what is in `file`, which is written where it is absent.

    Everybody may read it who gets that far: the folder is closed, and a container's user, to whom the file alone is
    given, is another one.
    """
    if not file.exists():
        file.write_text(f"{text}\n", encoding="ascii")
        file.chmod(0o644)
    return file.read_text(encoding="ascii").strip()


if __name__ == "__main__":
    main()
