"""Which machine to compute on, with how many threads, and in which precision."""

import contextlib

import torch

from s2s_cli.core.errors import DeviceError


def find_device(name: str) -> torch.device:
    """The device called `auto`, `cpu`, `cuda` or `cuda:N`; `auto` is CUDA where there is one.

    Raises:
        DeviceError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise DeviceError(f"--device {name}: one of auto, cpu, cuda, cuda:N")
    if kind == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) >= count:
        there = f"it has {count}" if count else "it has none that torch can use"
        raise DeviceError(
            f"--device {name}: this machine has no such CUDA device; {there}\n"
            "use --device cpu or auto"
        )
    # torch lets cuDNN's recurrent layers round fp32 to TF32 by default, to about 1e-3; then what a
    # sentence is batched with could change its translation.
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda", int(number or 0))


def set_threads(count: int) -> None:
    """Computes with `count` CPU threads; 0 leaves torch's choice."""
    if count:
        torch.set_num_threads(count)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[None]:
    """A context in which products are computed in `precision`, weights staying in fp32.

    Raises:
        DeviceError: a CUDA device that has no bf16, or fp16 on a CPU.
    """
    if precision == "fp32":
        return contextlib.nullcontext()
    if precision == "fp16" and device.type == "cpu":
        raise DeviceError("precision fp16 needs a CUDA device; here, use bf16 or fp32")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise DeviceError(f"{torch.cuda.get_device_name(device)} has no bf16\nuse precision fp32")
    return torch.autocast(device.type, torch.float16 if precision == "fp16" else torch.bfloat16)
