"""The time that a Prefect server was away is nobody's silence."""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.server.database import provide_database_interface
from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.server.database.dependencies import temporary_database_config

from flows import server


def _automation(posture: str) -> str:
    """A new one that is switched off, so that the server of the tests leaves alone what it waits for."""
    trigger = {"type": "event", "posture": posture, "expect": ["never"], "threshold": 1, "within": 100}
    content = {"name": posture, "enabled": False, "trigger": trigger, "actions": [{"type": "do-nothing"}]}
    with get_client(sync_client=True) as client:
        return str(client.request("POST", "/automations/", json=content).json()["id"])


async def _begin_to_wait(automation: str, start: datetime) -> None:
    database = provide_database_interface()
    async with database.session_context(begin_transaction=True) as session:
        found = await session.get(database.Automation, UUID(automation))
        times = {"start": start, "end": start + timedelta(seconds=100)}
        keys = {"automation_id": found.id, "trigger_id": found.trigger.id, "bucketing_key": [str(uuid4())]}
        session.add(database.AutomationBucket(**keys, **times, count=0))


async def _waits(automation: str) -> tuple[datetime, datetime]:
    database = provide_database_interface()
    async with database.session_context() as session:
        table = database.AutomationBucket.__table__
        rows = (await session.execute(table.select().where(table.c.automation_id == UUID(automation)))).all()
        (row,) = rows
        return row.start, row.end


@pytest.mark.usefixtures("prefect_server")
def test_what_is_waited_for_gets_its_whole_time_again() -> None:
    silent, often = _automation("Proactive"), _automation("Reactive")
    before = datetime.now(UTC)
    began = before - timedelta(seconds=130)  # 30 s late; the server throws away what is later by a minute

    async def restart() -> list[tuple[datetime, datetime]]:
        for each in (silent, often):
            await _begin_to_wait(each, began)
        await server.wait_anew()
        return [await _waits(each) for each in (silent, often)]

    (start, end), other = asyncio.run(restart())
    assert before <= start <= datetime.now(UTC)
    assert end - start == timedelta(seconds=100)
    assert other == (began, began + timedelta(seconds=100)), "a trigger that counts events keeps its window"


def test_a_new_database_and_one_that_cannot_be_read_do_not_keep_the_server_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[Any] = []
    monkeypatch.setattr(os, "execv", lambda program, words: started.append(words))
    monkeypatch.setattr(sys, "argv", ["server", "--port", "4201"])
    new = tmp_path / "prefect.db"
    with temporary_database_config(AioSqliteConfiguration(f"sqlite+aiosqlite:///{new}")):
        server.main()
    assert new.stat().st_mode & 0o077 == 0
    assert capsys.readouterr().err == ""

    async def fails() -> None:
        raise OSError("no such column")

    monkeypatch.setattr(server, "wait_anew", fails)
    server.main()
    assert "no such column" in capsys.readouterr().err
    assert started == [[sys.executable, "-m", "prefect", "server", "start", "--port", "4201"]] * 2
