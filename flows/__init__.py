"""Prefect flows: they orchestrate the plain functions of ``sra_core.stages`` and do nothing else."""
