"""What every training process imports; DeepSpeed's autotuner would import MLflow too."""

import os
import sys

os.environ.setdefault("DS_ACCELERATOR", "cpu")
sys.modules.setdefault("mlflow", None)  # type: ignore[arg-type]

import deepspeed  # noqa: E402
import peft  # noqa: E402
import torch  # noqa: E402
from transformers import GPT2LMHeadModel, LlamaForCausalLM  # noqa: E402

import sra_core.training.build  # noqa: E402
import sra_core.training.worker  # noqa: E402

torch.set_num_threads(1)
__all__ = ["GPT2LMHeadModel", "LlamaForCausalLM", "deepspeed", "peft", "sra_core"]
