from .adapters import adapter_targets, add_adapters
from .card import LICENCE_NOTE, licences_of, model_card
from .checkpoints import Checkpoints, Progress
from .data import DistillData, Order
from .export import export_model
from .history import learning_curves, read_history, step_costs
from .job import WORK, Job
from .launcher import join_stage, launch
from .runtime import deepspeed_settings, quiet_libraries
from .schedule import learning_rate, total_steps
from .sharing import refuse_other_numbers, refuse_other_steps
from .start import Starts, start_projectors
from .weights import KeptWeights

__all__ = [
    "LICENCE_NOTE",
    "WORK",
    "Checkpoints",
    "DistillData",
    "Job",
    "KeptWeights",
    "Order",
    "Progress",
    "Starts",
    "adapter_targets",
    "add_adapters",
    "deepspeed_settings",
    "export_model",
    "join_stage",
    "launch",
    "learning_curves",
    "learning_rate",
    "licences_of",
    "model_card",
    "quiet_libraries",
    "read_history",
    "refuse_other_numbers",
    "refuse_other_steps",
    "start_projectors",
    "step_costs",
    "total_steps",
]
