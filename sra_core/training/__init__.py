"""Training of the student under DeepSpeed: data order, loop, checkpoints, processes."""

from sra_core.training.adapters import adapter_targets, add_adapters
from sra_core.training.checkpoints import Checkpoints, Progress
from sra_core.training.data import DistillData, Order
from sra_core.training.export import export_student
from sra_core.training.job import Job
from sra_core.training.launcher import launch
from sra_core.training.schedule import learning_rate, total_steps

__all__ = [
    "Checkpoints",
    "DistillData",
    "Job",
    "Order",
    "Progress",
    "adapter_targets",
    "add_adapters",
    "export_student",
    "launch",
    "learning_rate",
    "total_steps",
]
