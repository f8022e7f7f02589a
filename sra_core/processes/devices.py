"""What the devices of this machine compute fast; nothing here loads torch where the machine has no GPU."""

from __future__ import annotations

from functools import cache
from pathlib import Path

__all__ = ["is_cuda", "native_dtype"]

_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # of x86 and, the last, of Arm
_AMPERE = (8, 0)


def native_dtype(device: str) -> str:
    """``bfloat16`` where a device computes it natively, else ``float32``.

    CUDA devices of capability 8 and up do, and CPUs with ``avx512_bf16`` or ``amx_bf16``: a forward takes half the time
    there. Elsewhere bfloat16 is emulated, and slower than float32.

    Args:
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``spread``, as in the config.
    """
    if is_cuda(device):
        import torch

        return "bfloat16" if torch.cuda.get_device_capability(int(_number(device))) >= _AMPERE else "float32"
    return "bfloat16" if _cpu_flags() & _BFLOAT16_FLAGS else "float32"


def is_cuda(device: str) -> bool:
    """Whether a device of the config is a CUDA device here; one that is not there is refused where it is asked for."""
    if device == "cpu" or not _has_nvidia_driver():
        return False
    import torch

    number = _number(device)
    return torch.cuda.is_available() and number.isdecimal() and int(number) < torch.cuda.device_count()


def _number(device: str) -> str:
    return device.partition(":")[2] or "0"


def _has_nvidia_driver() -> bool:
    # A driver of Linux, or that of Windows below WSL; where there is no /proc, torch has to say.
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/dxg").exists() or not Path("/proc").exists()


@cache
def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # no Linux: whatever it has, torch does not say
        return set()
    return {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split()}
