"""The engine of adapt and distill: data order, the loop under DeepSpeed, guards, checkpoints, processes, export."""

from sra_core.training.adapters import adapter_targets, add_adapters
from sra_core.training.card import model_card
from sra_core.training.checkpoints import Checkpoints, Progress
from sra_core.training.data import DistillData, Order
from sra_core.training.export import export_model
from sra_core.training.history import learning_curves, read_history, step_costs
from sra_core.training.job import WORK, Job
from sra_core.training.launcher import join_stage, launch
from sra_core.training.runtime import deepspeed_settings, quiet_libraries
from sra_core.training.schedule import learning_rate, total_steps
from sra_core.training.weights import KeptWeights

__all__ = [
    "WORK",
    "Checkpoints",
    "DistillData",
    "Job",
    "KeptWeights",
    "Order",
    "Progress",
    "adapter_targets",
    "add_adapters",
    "deepspeed_settings",
    "export_model",
    "join_stage",
    "launch",
    "learning_curves",
    "learning_rate",
    "model_card",
    "quiet_libraries",
    "read_history",
    "step_costs",
    "total_steps",
]
