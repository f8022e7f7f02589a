"""Which command trains: processes of this machine, or this one beside those that torchrun has started.

Several machines are torchrun's: it starts `sra` on each of them (under Slurm by srun), and one trains beside the other.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from sra_core.config import TrainingConfig
from sra_core.processes import free_port

__all__ = ["Start", "external_rank", "inside_torchrun", "session", "start_of"]

WORKER = "sra_core.training.worker"


@dataclass(frozen=True, slots=True)
class Start:
    """A command to run here, and what its environment has more than this process's."""

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)


def inside_torchrun(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun started this process, so that others train beside it."""
    return all(name in environment for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def external_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Rank of this process among those that torchrun started; 0 where it starts the others itself."""
    return int(environment["RANK"]) if inside_torchrun(environment) else 0


def session(environment: Mapping[str, str] = os.environ) -> str:
    """What tells one start by torchrun from the next."""
    # The count too: torchrun starts all processes again after a failure, with the address that they had.
    names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
    return "/".join(environment.get(name, "") for name in names)


def start_of(config: TrainingConfig, job_file: str, environment: Mapping[str, str] = os.environ) -> Start:
    """The command that trains on this machine.

    Args:
        config: How to train.
        job_file: The job, on a disk that all machines see.
        environment: This process's environment.
    """
    # torchrun has set rank and address for this process, and its child inherits them.
    if inside_torchrun(environment):
        return Start([sys.executable, "-m", WORKER, job_file])
    port = str(free_port())
    if config.processes == 1:  # without torchrun's own process and its seconds
        place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        return Start(
            [sys.executable, "-m", WORKER, job_file], {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(config.processes)]
    return Start([*torchrun, "--master_addr", "127.0.0.1", "--master_port", port, "-m", WORKER, job_file])
