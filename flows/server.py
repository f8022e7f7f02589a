"""The Prefect server, whose automations don't count the time that it was away: ``python -m flows.server --port 4200``.

Automation `crash-silent-runs` is due as soon as a server starts that was away for longer than runs may be silent. No
run can have told it anything meanwhile: all that trained were marked as crashed and scheduled again beside themselves,
and others took their place on the GPU. A person's automations that wait for something are in the same position.
"""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import UTC, datetime

import flows  # noqa: F401  sets defaults that Prefect reads on import

# isort: split
from prefect.server.database import provide_database_interface
from prefect.server.events.schemas.automations import Posture

__all__ = ["wait_anew"]


async def wait_anew() -> None:
    """Give whatever the server waits for as much time from now as it had when it began to wait."""
    database = provide_database_interface()
    async with database.session_context(begin_transaction=True) as session:
        connection = await session.connection()
        table = database.AutomationBucket.__table__
        if not await connection.run_sync(lambda plain: plain.dialect.has_table(plain, table.name)):
            return  # its first start
        for row in (await session.execute(table.select())).all():
            automation = await session.get(database.Automation, row.automation_id)
            if getattr(automation.trigger, "posture", None) == Posture.Proactive:
                now = datetime.now(UTC)
                times = {"start": now, "end": now + (row.end - row.start)}
                await session.execute(table.update().where(table.c.id == row.id).values(times))


def main() -> None:
    """Take the arguments of ``prefect server start``, and become it."""
    mask = os.umask(0o077)  # a database in a file may be made here
    try:
        asyncio.run(wait_anew())
    except Exception as error:  # a database of an older Prefect, say: the server brings it up to date when it starts
        sys.stderr.write(f"runs that were silent while the server was away may be marked as crashed: {error}\n")
    os.umask(mask)
    # The same process goes on: its number stands in the pid file of `services.py`.
    os.execv(sys.executable, [sys.executable, "-m", "prefect", "server", "start", *sys.argv[1:]])


if __name__ == "__main__":
    main()
