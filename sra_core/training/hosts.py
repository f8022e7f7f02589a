"""Which commands start the training processes: on this machine, over ssh, under Slurm, or beside ones already there."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sra_core.config import TrainingConfig
from sra_core.errors import ConfigError, TrainingError
from sra_core.processes import STARTER, free_port

__all__ = ["Start", "chosen_launcher", "external_rank", "read_hostfile", "session", "starts"]

WORKER = "sra_core.training.worker"
_HERE = {"localhost", "127.0.0.1"}
_PASSED = ("PYTHONPATH", "HF_HOME", "HF_HUB_OFFLINE", "SRA_CACHE_HOME", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
_PASSED_PREFIXES = ("NCCL_", "GLOO_", "TORCH_")


@dataclass(frozen=True, slots=True)
class Start:
    """One command to run here, and what its environment has more than this process's."""

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)


def chosen_launcher(config: TrainingConfig, environment: Mapping[str, str] = os.environ) -> str:
    """How processes are started: what the config says, or what ``auto`` finds.

    Raises:
        ConfigError: The launcher that the config names cannot work here.
    """
    if config.launcher == "auto":
        if _is_inside_torchrun(environment):
            return "torchrun"
        if config.hostfile:
            return "hostfile"
        return "slurm" if int(environment.get("SLURM_JOB_NUM_NODES", "1")) > 1 else "local"
    if config.launcher == "hostfile" and not config.hostfile:
        raise ConfigError(
            "launcher is `hostfile`, and there is no hostfile", "set hostfile to a file that lists machines"
        )
    if config.launcher == "slurm" and "SLURM_JOB_ID" not in environment:
        raise ConfigError("launcher is `slurm`, outside a Slurm allocation", "run inside sbatch or salloc")
    if config.launcher == "torchrun" and not _is_inside_torchrun(environment):
        raise ConfigError("launcher is `torchrun`, and RANK and WORLD_SIZE are not set", "start `sra` by torchrun")
    return config.launcher


def _is_inside_torchrun(environment: Mapping[str, str]) -> bool:
    return all(name in environment for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def external_rank(config: TrainingConfig, environment: Mapping[str, str] = os.environ) -> int:
    """Rank of this process among those that torchrun started; 0 where it starts the others itself."""
    return int(environment["RANK"]) if chosen_launcher(config, environment) == "torchrun" else 0


def session(environment: Mapping[str, str] = os.environ) -> str:
    """What tells one start by torchrun from the next."""
    names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
    return "/".join(environment.get(name, "") for name in names)


def starts(config: TrainingConfig, job_file: str, environment: Mapping[str, str] = os.environ) -> list[Start]:
    """The commands to run side by side on this machine; training ends when all of them have.

    Args:
        config: How to train.
        job_file: The job, on a disk that all machines see.
        environment: This process's environment.

    Raises:
        ConfigError: The launcher cannot work here, or the hostfile cannot be read.
        TrainingError: A program that the launcher needs is missing.
    """
    launcher = chosen_launcher(config, environment)
    if launcher == "torchrun":
        return [Start([sys.executable, "-m", WORKER, job_file])]
    if launcher == "slurm":
        return [_slurm(config, job_file, environment)]
    if launcher == "hostfile":
        return _over_ssh(read_hostfile(Path(str(config.hostfile))), job_file, environment)
    if config.processes == 1:
        place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        return [Start([sys.executable, "-m", WORKER, job_file], {**place, **address})]
    where = ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    return [Start(_torchrun(config.processes, where, job_file))]


def _torchrun(processes: int, where: Sequence[str], job_file: str) -> list[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    return [*start, *where, "-m", WORKER, job_file]


def _slurm(config: TrainingConfig, job_file: str, environment: Mapping[str, str]) -> Start:
    _need("srun", "load Slurm's module, or choose another launcher")
    nodes = environment.get("SLURM_JOB_NUM_NODES", "1")
    job = environment["SLURM_JOB_ID"]
    port = 20000 + int(job) % 20000
    where = ["--nnodes", nodes, "--rdzv_backend", "c10d", "--rdzv_id", job]
    where += ["--rdzv_endpoint", f"{socket.gethostname()}:{port}"]
    spread = ["srun", "--nodes", nodes, "--ntasks", nodes, "--ntasks-per-node", "1", "--kill-on-bad-exit=1"]
    return Start([*spread, *_torchrun(config.processes, where, job_file)], {STARTER: ""})


def _over_ssh(hosts: Sequence[tuple[str, int]], job_file: str, environment: Mapping[str, str]) -> list[Start]:
    here = {*_HERE, socket.gethostname()}
    head = hosts[0][0]
    address = "127.0.0.1" if all(name in here for name, _ in hosts) else head
    port = str(free_port())
    if any(name not in here for name, _ in hosts):
        _need("ssh", "install it, or choose another launcher")
    commands = []
    for number, (name, slots) in enumerate(hosts):
        where = [
            "--nnodes",
            str(len(hosts)),
            "--node_rank",
            str(number),
            "--master_addr",
            address,
            "--master_port",
            port,
        ]
        command = _torchrun(slots, where, job_file)
        commands.append(Start(command if name in here else _remote(name, command, environment)))
    return commands


def _remote(host: str, command: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The command on another machine; with a terminal of its own, it ends when the connection does."""
    passed = [
        f"{key}={value}" for key, value in environment.items() if key in _PASSED or key.startswith(_PASSED_PREFIXES)
    ]
    line = f"cd {shlex.quote(str(Path.cwd()))} && exec env {shlex.join([*passed, *command])}"
    return ["ssh", "-tt", "-o", "BatchMode=yes", host, line]


def read_hostfile(path: Path) -> list[tuple[str, int]]:
    """Machines and the processes of each, from lines ``name slots=N`` (one process where no slots are given).

    Raises:
        ConfigError: The file is missing, empty, or a line cannot be read.
    """
    try:
        lines = [line.partition("#")[0].split() for line in path.read_text().splitlines()]
    except OSError as error:
        raise ConfigError(f"cannot read the hostfile {path}: {error}", "give a file that lists machines") from error
    hosts = [_host(path, words) for words in lines if words]
    if not hosts:
        raise ConfigError(f"{path} lists no machine", "write one a line, as in `node1 slots=8`")
    return hosts


def _host(path: Path, words: Sequence[str]) -> tuple[str, int]:
    name, *rest = words
    slots = "1" if not rest else rest[0].removeprefix("slots=")
    if len(rest) > 1 or not slots.isdecimal() or int(slots) < 1 or name.startswith("-"):
        raise ConfigError(f"{path}: cannot read `{' '.join(words)}`", "write `node1 slots=8`")
    return name, int(slots)


def _need(program: str, remedy: str) -> None:
    if shutil.which(program) is None:
        raise TrainingError(f"there is no program {program}", remedy)
