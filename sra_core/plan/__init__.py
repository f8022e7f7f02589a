"""`sra plan`: what a run will take, before it runs, and how that compares with what it took."""

from sra_core.plan.plan import Plan
from sra_core.plan.predict import SAMPLE, plan_run, stage_seconds

__all__ = [
    "SAMPLE",
    "Plan",
    "plan_run",
    "stage_seconds",
]
