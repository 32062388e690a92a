"""Who may call: keys, their ends, and the gateway without any."""

import logging
import re
import sqlite3
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from gateway.callers import SCOPES
from gateway.database.database import open_database
from gateway.errors import InvalidKey, Misconfigured
from gateway.keys import store
from gateway.keys.first import check_keys
from gateway.keys.keyring import Keyring
from gateway.keys.schema import Grant, Keys, KeyText
from tests.gateway.conftest import TASKS, Gateway, Workers, error_of

ROOT = Path(__file__).parents[2]
ANYWHERE = "0.0.0.0"  # noqa: S104 (nothing is bound to it)
SPEECH = "/generate/audio?prompt=hello"
OPEN_PATHS = ("/livez", "/readyz", "/docs", "/redoc", "/openapi.json", "/static-offline-docs/favicon.png")

Start = Callable[..., Gateway]


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def create(gateway: Gateway, admin: str = "", **fields: Any) -> dict[str, Any]:
    """Make a key."""
    made = gateway.client.post("/v1/keys", json={"owner": "ada", **fields}, headers=bearer(admin) if admin else {})
    assert made.status_code == 201, made.text
    key: dict[str, Any] = made.json()
    return key


@pytest.fixture
def admin(gateway: Gateway) -> str:
    """The first key, after which others are asked for."""
    return str(create(gateway, scopes=["admin", "audio"])["key"])


class TestAnybody:
    """No keys, and only this machine can ask."""

    @pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.1.2.3:80", "[::1]:8", "ui.local"])
    def test_may_do_all_under_this_machines_own_names(self, start: Start, host: str) -> None:
        gateway = start(allowed_hosts="ui.local, other.local")
        assert gateway.client.get(SPEECH, headers={"host": host}).status_code == 200

    @pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:80", "10.0.0.1", "[::2]", "127.0.0.1.x"])
    def test_may_do_nothing_under_the_name_of_somebody_elses_page(
        self, shared: tuple[Gateway, Workers], host: str
    ) -> None:
        for path in (SPEECH, "/v1/usage", "/metrics", "/docs"):
            refused = shared[0].client.get(path, headers={"host": host})
            assert refused.status_code == 421
            assert error_of(refused)["code"] == "wrong_host"

    def test_probes_may_call_by_any_name(self, shared: tuple[Gateway, Workers]) -> None:
        assert shared[0].client.get("/livez", headers={"host": "10.0.0.7:8000"}).status_code == 200

    def test_may_send_a_key_that_nobody_asked_for(self, shared: tuple[Gateway, Workers]) -> None:
        assert shared[0].client.get("/v1/usage", headers=bearer("sk-whatever")).status_code == 200

    def test_is_told_apart_by_address_in_the_workers_queues(self, gateway: Gateway, workers: Workers) -> None:
        gateway.client.get(SPEECH)
        assert workers.requests[0].headers["x-atelier-caller"] == "127.0.0.1"

    def test_may_make_the_first_key_only_if_it_can_make_others(self, gateway: Gateway) -> None:
        refused = gateway.client.post("/v1/keys", json={"owner": "ada", "scopes": ["text"]})
        assert (refused.status_code, error_of(refused)["param"]) == (400, "scopes")
        assert gateway.client.get(SPEECH).status_code == 200

    def test_a_page_elsewhere_cannot_make_one_either(self, gateway: Gateway) -> None:
        """A form that a page sends without asking beforehand has another media type."""
        body = b'{"owner": "eve", "scopes": ["admin"]}'
        sent = gateway.client.post("/v1/keys", content=body, headers={"content-type": "text/plain"})
        assert sent.status_code == 400
        assert gateway.client.get("/v1/keys").json()["data"] == []


class TestWithKeys:
    def test_the_first_key_shuts_the_door(self, gateway: Gateway, admin: str) -> None:
        for method, path in (("GET", SPEECH), ("GET", "/v1/usage"), ("POST", "/v1/keys"), ("GET", "/no/such/route")):
            refused = gateway.client.request(method, path)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
            assert error_of(refused)["code"] == "invalid_api_key"
            assert error_of(refused)["type"] == "authentication_error"
            assert {"x-request-id", "x-response-time"} <= set(refused.headers)

    def test_it_stays_shut_after_a_restart_and_for_other_gateways(self, start: Start) -> None:
        other = start(key_cache_seconds=0)
        assert other.client.get("/v1/usage").status_code == 200
        first = start()
        create(first, scopes=["admin"])
        assert other.client.get("/v1/usage").status_code == 401
        first.close()
        assert start().client.get("/v1/usage").status_code == 401

    @pytest.mark.parametrize("path", OPEN_PATHS)
    def test_some_pages_need_none(self, gateway: Gateway, admin: str, path: str) -> None:
        assert gateway.client.get(path).status_code == 200

    @pytest.mark.parametrize("spelling", ["Bearer {}", "bearer {}", "BEARER  {}"])
    def test_a_key_opens_it(self, gateway: Gateway, admin: str, spelling: str) -> None:
        assert gateway.client.get(SPEECH, headers={"authorization": spelling.format(admin)}).status_code == 200

    def test_a_key_opens_it_under_the_other_header_and_any_host(self, gateway: Gateway, admin: str) -> None:
        headers = {"x-api-key": admin, "host": "models.example"}
        assert gateway.client.get(SPEECH, headers=headers).status_code == 200

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda key: "-",
            lambda key: "sk-1234",
            lambda key: key[:-1],
            lambda key: key + "x",
            lambda key: key[:-1] + ("a" if key[-1] != "a" else "b"),
            lambda key: str(KeyText.new()),
            lambda key: "atl_" + "0" * 16 + key[20:],
        ],
    )
    def test_what_is_not_quite_a_key_opens_nothing(
        self, gateway: Gateway, admin: str, spoil: Callable[[str], str]
    ) -> None:
        refused = gateway.client.get(SPEECH, headers=bearer(spoil(admin)))
        assert (refused.status_code, error_of(refused)["code"]) == (401, "invalid_api_key")

    def test_an_expired_key_opens_nothing(self, start: Start, tmp_path: Path) -> None:
        gateway = start(key_cache_seconds=0)
        admin = create(gateway, scopes=["admin"])["key"]
        key = create(gateway, admin, expires_at=(datetime.now(UTC) + timedelta(days=1)).isoformat())
        assert gateway.client.get(SPEECH, headers=bearer(key["key"])).status_code == 200
        with closing(sqlite3.connect(tmp_path / "atelier.sqlite3")) as database, database:
            database.execute("UPDATE keys SET expires_at = '2020-01-01 00:00:00' WHERE id = ?", (key["id"],))
        refused = gateway.client.get(SPEECH, headers=bearer(key["key"]))
        assert refused.status_code == 401
        assert "expired" in error_of(refused)["message"]

    def test_a_revoked_key_opens_nothing_at_once(self, start: Start) -> None:
        gateway = start(key_cache_seconds=1000)
        admin = create(gateway, scopes=["admin"])["key"]
        key = create(gateway, admin)
        assert gateway.client.get(SPEECH, headers=bearer(key["key"])).status_code == 200
        revoked = gateway.client.delete(f"/v1/keys/{key['id']}", headers=bearer(admin)).json()
        assert revoked["revoked_at"]
        assert gateway.client.get(SPEECH, headers=bearer(key["key"])).status_code == 401
        again = gateway.client.delete(f"/v1/keys/{key['id']}", headers=bearer(admin)).json()
        assert again["revoked_at"] == revoked["revoked_at"]

    def test_its_id_and_not_the_address_goes_to_workers(self, gateway: Gateway, workers: Workers, admin: str) -> None:
        gateway.client.get(SPEECH, headers=bearer(admin))
        assert workers.requests[0].headers["x-atelier-caller"] == admin.split("_")[1]
        assert admin.split("_", 2)[2] not in str(workers.requests[0].headers.raw)

    def test_a_browser_elsewhere_may_read_why_it_was_refused(self, start: Start) -> None:
        gateway = start(cors_origins="https://ui.example")
        create(gateway, scopes=["admin"])
        headers = {"origin": "https://ui.example"}
        refused = gateway.client.get(SPEECH, headers=headers)
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://ui.example")
        asking = {**headers, "access-control-request-method": "GET", "access-control-request-headers": "authorization"}
        assert gateway.client.options(SPEECH, headers=asking).status_code == 200


class TestAdmins:
    def test_only_they_see_and_make_keys(self, gateway: Gateway, admin: str) -> None:
        key = create(gateway, admin, scopes=["text", "audio"])
        for method, path in (
            ("POST", "/v1/keys"),
            ("GET", "/v1/keys"),
            ("GET", f"/v1/keys/{key['id']}"),
            ("PATCH", f"/v1/keys/{key['id']}"),
            ("DELETE", f"/v1/keys/{key['id']}"),
        ):
            refused = gateway.client.request(method, path, headers=bearer(key["key"]))
            assert (refused.status_code, error_of(refused)["code"]) == (403, "insufficient_scope")
            assert error_of(refused)["type"] == "permission_error"

    def test_a_key_is_shown_once(self, gateway: Gateway, admin: str) -> None:
        fields: dict[str, Any] = {
            "models": ["b", "a"],
            "expires_at": "2100-01-01T00:00:00Z",
            "requests_per_minute": 60,
            "budgets": {"day": {"tokens": 1000}, "month": {"money": 2.5}},
        }
        made = create(gateway, admin, scopes=["text", "audio"], **fields)
        secret = made["key"].split("_", 2)[2]
        assert len(secret) == 43
        shown = gateway.client.get(f"/v1/keys/{made['id']}", headers=bearer(admin))
        listed = gateway.client.get("/v1/keys", headers=bearer(admin))
        assert secret not in shown.text + listed.text
        assert listed.json()["data"][0].items() <= made.items()
        assert shown.json() == {
            "object": "key",
            "id": made["key"].split("_")[1],
            "owner": "ada",
            "scopes": ["audio", "text"],
            "models": ["a", "b"],
            "created_at": made["created_at"],
            "expires_at": "2100-01-01T00:00:00Z",
            "requests_per_minute": 60,
            "concurrent_streams": None,
            "budgets": {"day": {"tokens": 1000.0}, "month": {"money": 2.5}},
            "log_content": None,
            "used": {"day": {"tokens": 0.0}, "month": {"money": 0.0}},
            "last_used_at": None,
            "revoked_at": None,
        }

    def test_the_list_comes_in_pages_newest_first(self, gateway: Gateway, admin: str) -> None:
        made = [create(gateway, admin)["id"] for _ in range(3)]
        first = gateway.client.get("/v1/keys?limit=2", headers=bearer(admin)).json()
        assert [key["id"] for key in first["data"]] == made[:0:-1]
        assert first["has_more"]
        rest = gateway.client.get(f"/v1/keys?after={made[1]}", headers=bearer(admin)).json()
        assert [key["id"] for key in rest["data"]] == [made[0], admin.split("_")[1]]
        assert not rest["has_more"]
        last = gateway.client.get(f"/v1/keys?after={admin.split('_')[1]}", headers=bearer(admin)).json()
        assert (last["data"], last["has_more"]) == ([], False)
        nowhere = gateway.client.get(f"/v1/keys?after={'0' * 16}", headers=bearer(admin))
        assert (nowhere.status_code, error_of(nowhere)["code"]) == (404, "after_not_found")

    @pytest.mark.parametrize(
        ("wrong", "param"),
        [
            ({"owner": ""}, "owner"),
            ({"scopes": []}, "scopes"),
            ({"scopes": ["root"]}, "scopes.0"),
            ({"models": []}, "models"),
            ({"expires_at": "2020-01-01"}, "expires_at"),
            ({"secret": "mine"}, "secret"),
            ({"requests_per_minute": 0}, "requests_per_minute"),
            ({"concurrent_streams": -1}, "concurrent_streams"),
            ({"budgets": {"day": {"tokens": 0}}}, "budgets.day.tokens"),
            ({"budgets": {"day": {"pages": 5}}}, "budgets.day.pages"),
            ({"budgets": {"hour": {"tokens": 5}}}, "budgets.hour"),
            ({"budgets": {"month": {"money": 1e30}}}, "budgets.month.money"),
        ],
    )
    def test_what_makes_no_key_is_named(self, gateway: Gateway, admin: str, wrong: dict[str, Any], param: str) -> None:
        refused = gateway.client.post("/v1/keys", json={"owner": "ada", **wrong}, headers=bearer(admin))
        assert (refused.status_code, error_of(refused)["param"]) == (400, param)

    def test_a_scope_that_is_none_is_answered_with_all_that_are(self, gateway: Gateway, admin: str) -> None:
        refused = gateway.client.post("/v1/keys", json={"owner": "ada", "scopes": ["root"]}, headers=bearer(admin))
        assert all(f"'{scope}'" in error_of(refused)["message"] for scope in (*TASKS, "admin"))

    def test_a_key_that_is_not_there_is_404(self, gateway: Gateway, admin: str) -> None:
        for method in ("GET", "PATCH", "DELETE"):
            for key_id in ("0123", "0" * 16, "%00", "%F0%9F%92%A9"):
                body = {"owner": "eve"} if method == "PATCH" else None
                refused = gateway.client.request(method, f"/v1/keys/{key_id}", json=body, headers=bearer(admin))
                assert (refused.status_code, error_of(refused)["code"]) == (404, "key_not_found")
        assert gateway.client.get("/v1/keys?after=%00", headers=bearer(admin)).status_code == 400

    def test_when_a_key_was_last_used_is_known_in_the_end(self, start: Start) -> None:
        gateway = start()
        admin = create(gateway, scopes=["admin"])["key"]
        unused = create(gateway, admin)["id"]
        gateway.close()
        keys = start().client.get("/v1/keys", headers=bearer(admin)).json()["data"]
        used = {key["id"]: key["last_used_at"] for key in keys}
        assert used[unused] is None
        assert used[admin.split("_")[1]] is not None

    @pytest.mark.parametrize(("host", "is_open", "status"), [(ANYWHERE, False, 403), (ANYWHERE, True, 200)])
    def test_metrics_are_theirs_where_others_can_ask(
        self, start: Start, tmp_path: Path, host: str, is_open: bool, status: int
    ) -> None:
        gateway = start(host=host, open_metrics=is_open, admin_key_file=tmp_path / "admin.key")
        admin = (tmp_path / "admin.key").read_text().strip()
        key = create(gateway, admin)["key"]
        assert gateway.client.get("/metrics", headers=bearer(key)).status_code == status
        assert gateway.client.get("/metrics", headers=bearer(admin)).status_code == 200
        assert gateway.client.get("/metrics").status_code == (200 if is_open else 401)

    def test_metrics_are_everybodys_where_only_this_machine_can_ask(self, gateway: Gateway, admin: str) -> None:
        assert gateway.client.get("/metrics").status_code == 200


class TestChanging:
    """What a key may, after it has been made."""

    def change(self, gateway: Gateway, admin: str, key_id: str, **changes: Any) -> httpx.Response:
        return gateway.client.patch(f"/v1/keys/{key_id}", json=changes, headers=bearer(admin))

    def test_holds_at_once_here_and_soon_elsewhere(self, start: Start) -> None:
        here, elsewhere = start(key_cache_seconds=1000), start(key_cache_seconds=0)
        admin = create(here, scopes=["admin"])["key"]
        key = create(here, admin, scopes=["audio"])
        for gateway in (here, elsewhere):
            assert gateway.client.get(SPEECH, headers=bearer(key["key"])).status_code == 200
        changed = self.change(here, admin, key["id"], scopes=["text"]).json()
        assert (changed["scopes"], changed["owner"], changed["id"]) == (["text"], "ada", key["id"])
        for gateway in (here, elsewhere):
            assert gateway.client.get(SPEECH, headers=bearer(key["key"])).status_code == 403

    def test_leaves_what_is_not_named_and_takes_limits_away(self, gateway: Gateway, admin: str) -> None:
        fields: dict[str, Any] = {
            "owner": "bob",
            "scopes": ["audio", "text"],
            "models": ["bark-small"],
            "expires_at": "2100-01-01T00:00:00Z",
            "requests_per_minute": 60,
            "concurrent_streams": 3,
            "budgets": {"day": {"tokens": 1000.0}},
            "log_content": "all",
        }
        key = create(gateway, admin, **fields)
        for name in fields:
            value: Any = {"owner": "eve", "scopes": ["mesh"], "budgets": {}}.get(name)
            changed = self.change(gateway, admin, key["id"], **{name: value})
            fields[name] = value
            assert fields.items() <= changed.json().items(), changed.text
        shown = gateway.client.get(f"/v1/keys/{key['id']}", headers=bearer(admin)).json()
        assert fields.items() <= shown.items()
        assert self.change(gateway, admin, key["id"]).json() == shown

    def test_of_a_budget_keeps_what_is_spent(self, gateway: Gateway, admin: str) -> None:
        key = create(gateway, admin, scopes=["audio"], budgets={"day": {"audio_seconds": 100}})
        assert gateway.client.get(SPEECH, headers=bearer(key["key"])).status_code == 200
        changed = self.change(gateway, admin, key["id"], budgets={"day": {"audio_seconds": 20}})
        assert changed.json()["used"] == {"day": {"audio_seconds": 16}}
        assert gateway.client.get(SPEECH, headers=bearer(key["key"])).status_code == 429
        self.change(gateway, admin, key["id"], budgets={"day": {"audio_seconds": 50}})
        assert gateway.client.get(SPEECH, headers=bearer(key["key"])).status_code == 200

    def test_of_a_limit_keeps_what_was_asked_in_this_minute(self, gateway: Gateway, admin: str) -> None:
        key = create(gateway, admin, scopes=["audio"], requests_per_minute=3)
        statuses = [gateway.client.get(SPEECH, headers=bearer(key["key"])).status_code]
        for per_minute in (2, 1, 4):
            self.change(gateway, admin, key["id"], requests_per_minute=per_minute)
            statuses.append(gateway.client.get(SPEECH, headers=bearer(key["key"])).status_code)
        assert statuses == [200, 200, 429, 200]

    @pytest.mark.parametrize("wrong", [{"owner": None}, {"scopes": None}, {"id": "x"}, {"key": "x"}, {"models": []}])
    def test_to_what_is_no_key_is_refused_by_its_name(
        self, gateway: Gateway, admin: str, wrong: dict[str, Any]
    ) -> None:
        key = create(gateway, admin)
        refused = (
            self.change(gateway, admin, key["id"], owner="eve", **wrong)
            if "owner" not in wrong
            else (self.change(gateway, admin, key["id"], **wrong))
        )
        assert (refused.status_code, error_of(refused)["param"]) == (400, next(iter(wrong)))
        assert gateway.client.get(f"/v1/keys/{key['id']}", headers=bearer(admin)).json()["owner"] == "ada"

    def test_does_not_open_what_has_been_revoked(self, gateway: Gateway, admin: str) -> None:
        key = create(gateway, admin)
        gateway.client.delete(f"/v1/keys/{key['id']}", headers=bearer(admin))
        refused = self.change(gateway, admin, key["id"], owner="eve")
        assert (refused.status_code, error_of(refused)["code"]) == (409, "key_revoked")

    def test_says_whose_words_the_usage_log_keeps(self, start: Start, workers: Workers) -> None:
        """Whatever it keeps of the others'."""
        workers.streams_once(b'{"choices": [{"index": 0, "text": "a lamp"}]}', content_type="application/json")
        gateway = start(log_content="prompts")
        admin = create(gateway, scopes=["admin"])["key"]
        keys = {
            kept: create(gateway, admin, owner=kept, log_content=kept)["key"] for kept in ("none", "prompts", "all")
        }
        keys["default"] = create(gateway, admin, owner="default")["key"]
        for key in keys.values():
            body = {"prompt": "a lighthouse"}
            assert gateway.client.post("/v1/completions", json=body, headers=bearer(key)).status_code == 200
        rows = {row["owner"]: row for row in gateway.rows() if row["modality"]}
        kept = {owner: (row["prompt"] is not None, row["output"] is not None) for owner, row in rows.items()}
        assert kept == {
            "none": (False, False),
            "prompts": (True, False),
            "all": (True, True),
            "default": (True, False),
        }
        assert "a lamp" in rows["all"]["output"]


class TestFirstKey:
    async def check(self, folder: Path, file: Path | None, *, is_loopback: bool = False) -> None:
        async with open_database(f"sqlite+aiosqlite:///{folder}/atelier.sqlite3") as database:
            await check_keys(database, file, is_loopback=is_loopback)

    def test_other_machines_are_let_in_only_with_keys(self, tmp_path: Path) -> None:
        """The program itself: it ends with a sentence and not with a traceback."""
        done = subprocess.run(
            [sys.executable, "-m", "gateway"],
            cwd=ROOT,
            env={"ATELIER_HOST": ANYWHERE, "ATELIER_DATA_DIR": str(tmp_path), "ATELIER_PORT": "0"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("atelier: ATELIER_HOST lets other machines in")
        assert "Traceback" not in done.stderr

    def test_an_absent_file_gets_the_first_key_which_is_not_shown(
        self, start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        file = tmp_path / "admin.key"
        with caplog.at_level(logging.DEBUG):
            gateway = start(host=ANYWHERE, admin_key_file=file)
        key = file.read_text().strip()
        assert file.stat().st_mode & 0o777 == 0o600
        assert str(file) in caplog.text
        assert key.split("_", 2)[2] not in caplog.text
        assert gateway.client.get("/v1/keys").status_code == 401
        [shown] = gateway.client.get("/v1/keys", headers=bearer(key)).json()["data"]
        assert set(shown["scopes"]) == SCOPES
        others = {path.name for path in tmp_path.iterdir() if not path.name.startswith("atelier.sqlite3")}
        assert others == {"admin.key", "signing.key", "artefacts"}

    def test_the_file_is_kept(self, start: Start, tmp_path: Path) -> None:
        file = tmp_path / "admin.key"
        file.write_text(f"{KeyText.new()}\n")
        for _ in range(2):
            gateway = start(admin_key_file=file)
            headers = bearer(file.read_text().strip())
            assert len(gateway.client.get("/v1/keys", headers=headers).json()["data"]) == 1
            gateway.close()

    @pytest.mark.anyio
    async def test_a_file_that_is_of_no_use_is_said(self, tmp_path: Path) -> None:
        file = tmp_path / "admin.key"
        await self.check(tmp_path, file)
        text = KeyText.read(file.read_text().strip())
        assert text is not None
        file.write_text(f"{KeyText(text.id, KeyText.new().secret)}")
        with pytest.raises(Misconfigured, match="another secret"):
            await self.check(tmp_path, file)
        file.write_text("my password")
        with pytest.raises(Misconfigured, match="holds no key"):
            await self.check(tmp_path, file)
        with pytest.raises(Misconfigured, match="cannot be read"):
            await self.check(tmp_path, tmp_path / "no" / "folder")
        file.write_text(str(text))
        async with open_database(f"sqlite+aiosqlite:///{tmp_path}/atelier.sqlite3") as database:
            await store.revoke(database, text.id)
        with pytest.raises(Misconfigured, match="is revoked"):
            await self.check(tmp_path, file)

    @pytest.mark.anyio
    async def test_keys_that_are_there_are_enough(self, tmp_path: Path) -> None:
        with pytest.raises(Misconfigured, match="ATELIER_ADMIN_KEY_FILE"):
            await self.check(tmp_path, None)
        await self.check(tmp_path, None, is_loopback=True)
        await self.check(tmp_path, tmp_path / "admin.key")
        await self.check(tmp_path, None)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Clock:
    """A time that passes when told to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@asynccontextmanager
async def opened(folder: Path, clock: Clock) -> AsyncGenerator[tuple[Keyring, Keyring]]:
    """Two gateways' rings over one database, fresh for five seconds."""
    async with open_database(f"sqlite+aiosqlite:///{folder}/atelier.sqlite3") as database:
        yield Keyring(database, 5, now=clock), Keyring(database, 5, now=clock)


@pytest.mark.anyio
class TestMemory:
    async def test_another_gateways_revocation_is_seen_within_the_time(self, tmp_path: Path) -> None:
        clock = Clock()
        async with opened(tmp_path, clock) as (here, there):
            key, text = await there.add(Grant("ada", SCOPES))
            assert await here.find(str(text)) == key
            await there.revoke(key.id)
            with pytest.raises(InvalidKey):
                await there.find(str(text))
            clock.seconds = 4.9
            assert await here.find(str(text)) == key
            clock.seconds = 5
            with pytest.raises(InvalidKey):
                await here.find(str(text))

    async def test_a_key_is_looked_up_once_in_that_time(self, tmp_path: Path) -> None:
        """What changes in the database meanwhile is not seen."""
        async with opened(tmp_path, Clock()) as (here, there):
            _, text = await there.add(Grant("ada", SCOPES))
            await here.find(str(text))
            async with here._database.begin() as connection:
                await connection.execute(update(Keys).values(owner="eve"))
            assert (await here.find(str(text))).grant.owner == "ada"

    async def test_guesses_are_remembered_too_and_not_without_end(self, tmp_path: Path) -> None:
        async with open_database(f"sqlite+aiosqlite:///{tmp_path}/atelier.sqlite3") as database:
            here = Keyring(database, 5, capacity=10, now=Clock())
            _, text = await here.add(Grant("ada", SCOPES))
            await here.find(str(text))
            for _ in range(30):
                with pytest.raises(InvalidKey):
                    await here.find(str(KeyText.new()))
            assert (len(here._unknown), len(here._known)) == (10, 1)


def test_the_secret_is_nowhere_but_with_its_owner(
    start: Start, workers: Workers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In no log at any level, error, metric, request to a worker, or file."""
    with caplog.at_level(logging.DEBUG):
        gateway = start(admin_key_file=tmp_path / "admin.key", openai_base_url="http://provider.test/v1")
        admin = (tmp_path / "admin.key").read_text().strip()
        key = create(gateway, admin, scopes=["audio", "text"])["key"]
        texts = []
        for sent in (key, key[:-1], key + "x", f"{key[:-3]}xyz"):
            for path in (SPEECH, "/generate/openai/text?prompt=x", "/v1/keys", "/generate/audio", "/no", "/metrics"):
                texts.append(gateway.client.get(path, headers={"x-api-key": sent}).text)
        workers.refuses(500, b"")
        texts.append(gateway.client.get(SPEECH, headers=bearer(key)).text)
        # Where no key belongs: who revokes one by its text gets no further, and leaves no trace.
        assert gateway.client.delete(f"/v1/keys/{key}", headers=bearer(admin)).status_code == 404
        texts.append(str(gateway.client.get(SPEECH, headers={**bearer(key), "x-request-id": key}).headers))
        texts.append(gateway.client.get("/metrics", headers=bearer(admin)).text)

        async def answer(request: httpx.Request) -> httpx.Response:
            raise ZeroDivisionError

        workers.answer = answer
        texts.append(gateway.client.get(SPEECH, headers=bearer(key)).text)
        gateway.close()
    assert "provider.test" in {request.url.host for request in workers.requests}
    texts += [str(request.headers.raw) + str(request.url) for request in workers.requests]
    clients = ("httpx", "httpcore.http11")  # in this process
    ours = [record for record in caplog.records if record.name not in clients]
    texts += [record.getMessage() + str(record.exc_text) for record in ours]
    (tmp_path / "admin.key").unlink()
    texts += [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    assert len(texts) > 30
    for secret in (key.split("_", 2)[2][:20], admin.split("_", 2)[2][:20]):
        assert not re.search(re.escape(secret), "\n".join(texts))
