"""`python -m gateway.jobs [--delete]`: compare the files of jobs with their rows, as after a restore; gateways may run.

Files that no row names are told of, or deleted; files that a row names and that are not there are told of.
"""

import asyncio
import os
import sys
from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.artefacts.store import Artefacts
from gateway.database.database import for_reading, open_database
from gateway.errors import Misconfigured, NoSuchArtefact
from gateway.jobs.schema import JobRow, Output, UploadRow
from gateway.settings import Settings


async def main(settings: Settings, *, deletes: bool) -> None:
    """Do it, and say what was found.

    Raises:
        Misconfigured: the files are surely those of another database.
    """
    artefacts = Artefacts.open(settings.artefacts_url, settings.artefacts_dir)
    kept = await artefacts.kept()  # first: whoever keeps a file has written a row before
    async with open_database(settings.database) as database:
        known = await named(database)
        if kept and not known & kept.keys():
            raise Misconfigured(
                "ATELIER_DATABASE_URL: this database knows none of the jobs that have files: a wrong one?"
            )
        unnamed = {job_id: kept[job_id] for job_id in kept.keys() - known if job_id.startswith("job_")}  # not others'
        missing = await without_files(database, artefacts)
    for job_id in unnamed if deletes else ():
        await artefacts.delete(job_id)
    said = "deleted" if deletes else "--delete removes them" if unnamed else "nothing to delete"
    out = sys.stdout.write
    out(f"files of {len(unnamed)} jobs that the database does not know: {sum(unnamed.values())} bytes; {said}\n")
    out("\n  ".join([f"jobs that lack files: {len(missing)}", *missing]) + "\n")


async def named(database: AsyncEngine) -> frozenset[str]:
    """The jobs that have rows, accepted or not yet."""
    async with for_reading(database).connect() as connection:
        uploads = await connection.scalars(select(UploadRow.job_id))  # first: an upload becomes a job
        return frozenset([*uploads, *await connection.scalars(select(JobRow.id))])


async def without_files(database: AsyncEngine, artefacts: Artefacts) -> list[str]:
    """The jobs whose callers would be told that a file is not kept any more."""
    async with for_reading(database).connect() as connection:
        rows = await connection.execute(select(JobRow.id, JobRow.outputs).where(JobRow.is_deleted.is_(False)))
        outputs: Mapping[str, list[Output]] = {row.id: [Output.of(each) for each in row.outputs] for row in rows}
    missing = []
    for job_id, files in outputs.items():
        try:
            for each in files:
                await artefacts.check_has(each.artefact)
        except NoSuchArtefact:
            missing.append(job_id)
    return missing


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["--delete"]):
        sys.exit("usage: python -m gateway.jobs [--delete]")
    status = 0
    try:
        asyncio.run(main(Settings(), deletes=bool(sys.argv[1:])))
    except Misconfigured as error:
        sys.stderr.write(f"atelier: {error}\n")
        status = 1
    sys.stdout.flush()
    os._exit(status)  # obstore's threads may still let go of what they answered with: a usual end would abort them
