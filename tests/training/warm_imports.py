"""What every training process imports; DeepSpeed's autotuner would import MLflow too."""

import os
import sys

os.environ.setdefault("DS_ACCELERATOR", "cpu")
sys.modules.setdefault("mlflow", None)  # type: ignore[arg-type]

import deepspeed
import torch

import sra_core.training.build
import sra_core.training.worker

torch.set_num_threads(1)
__all__ = ["deepspeed", "sra_core"]
