"""Snakemake's command line, but asking SLURM once a second how its jobs are: for tests, whose jobs take seconds."""

import asyncio

import snakemake_executor_plugin_slurm
from snakemake.cli import main


async def a_second(self):
    await asyncio.sleep(1)


snakemake_executor_plugin_slurm.Executor.sleep = a_second
main()
