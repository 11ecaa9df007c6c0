"""Which machine to compute on: its threads, its precisions, and what makes it fast."""

import contextlib
import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import torch

from s2s_cli.core.errors import DeviceError
from s2s_cli.core.model.products import capabilities, multiplies_integers


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
    _round_to_tf32(False)
    return torch.device("cuda", int(number or 0))


def set_threads(count: int) -> None:
    """Computes with `count` CPU threads; 0: as torch chooses, but no more than the machine lends.

    torch counts the cores that it may run on; a container often has fewer cores' worth of time.
    """
    share = _lent_cores(Path("/sys/fs/cgroup/cpu.max"))
    if not count and share and "OMP_NUM_THREADS" not in os.environ:
        count = min(torch.get_num_threads(), share)
    if count:
        torch.set_num_threads(count)


def _lent_cores(file: Path) -> int | None:
    """The cores' worth of time, rounded up, that Linux lends this group of processes."""
    try:
        quota, period = file.read_text(encoding="ascii").split()
        return max(1, -(-int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or "max"
        return None


def usable_precision(device: torch.device, precision: str) -> str:
    """The precision itself, but fp32 for bf16 where a GPU has no products of it.

    Raises:
        DeviceError: fp16 or tf32 on a CPU; int8 elsewhere, or on a CPU that torch lends none of it.
    """
    if precision == "int8" and device.type != "cpu":
        raise DeviceError("precision int8 needs a CPU; use --device cpu, or bf16 or fp32")
    if precision == "int8" and not multiplies_integers():
        raise DeviceError("this torch has no products of int8 for this CPU; use bf16 or fp32")
    if precision in ("fp16", "tf32") and device.type == "cpu":
        raise DeviceError(f"precision {precision} needs a CUDA device; here, use bf16 or fp32")
    if precision == "bf16" and device.type == "cuda":
        with torch.cuda.device(device) if device.index else contextlib.nullcontext():
            there = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if there else "fp32"
    return precision


NO_BF16 = "this GPU has no bf16: products are in fp32"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[None]:
    """A context for products in the usable precision, weights staying in fp32.

    Raises:
        DeviceError: fp16 or tf32 on a CPU.
    """
    match usable_precision(device, precision):
        case "bf16":
            return torch.autocast(device.type, torch.bfloat16)
        case "fp16":
            return torch.autocast(device.type, torch.float16)
        case _:
            return contextlib.nullcontext()


def accelerate(device: torch.device, precision: str) -> list[str]:
    """Switches on, for the whole process and all that runs in it, what makes training fast.

    Gives a line for each technique, also for one that steps aside. What comes out of fp32 changes
    by its own rounding alone, and the choice depends on the machine, never on a measured time: the
    same machine computes the same bits every time.
    """
    if device.type == "cuda":
        rounded = precision == "tf32"
        _round_to_tf32(rounded)
        return ["fp32 products in TF32" if rounded else "fp32 products exact, not in TF32"]
    lines = [keep_memory(), _fast_products()]
    if precision == "bf16":
        lines.append("products in bf16" if _has_bf16_products() else SLOW_BF16)
    return lines


def _has_bf16_products() -> bool:
    """Whether an x86 CPU multiplies bf16; True where torch cannot tell."""
    told = capabilities()
    if told.get("architecture") != "x86_64":
        return True
    return bool(told.get("avx512_bf16") or told.get("amx_bf16"))


def _round_to_tf32(allowed: bool) -> None:
    """Whether CUDA's fp32 products and recurrent layers may round their inputs to 10 bits."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(cudnn, "rnn"):  # torch 2.9, which warns of the older names
        precision = "tf32" if allowed else "ieee"
        matmul.fp32_precision = precision
        cudnn.rnn.fp32_precision = precision  # type: ignore[attr-defined]
    else:
        matmul.allow_tf32 = cudnn.allow_tf32 = allowed


SLOW_BF16 = "bf16: this CPU has no products of it, fp32 may be faster"

# Names of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MEMORY_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
KEPT_BLOCK = 1 << 30  # bytes
OLD_KEPT_BLOCK = 1 << 25  # the most that some versions allow


def keep_memory() -> str:
    """Keeps memory that tensors leave, for the next ones.

    By default glibc gives large blocks back to the system at once; each new one then comes as
    pages that the system fills with zeros, which can take as long as what is computed on them.
    """
    asked = [name for name in MEMORY_VARIABLES if name in os.environ]
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        asked.append("GLIBC_TUNABLES")
    if asked:
        return f"freed memory: as {asked[0]} in the environment says"
    mallopt = _glibc_mallopt()
    if mallopt is None:
        return "freed memory goes back to the system: no glibc here"
    if not mallopt(M_TRIM_THRESHOLD, 2**31 - 1):
        return "freed memory goes back to the system: glibc refuses to keep it"
    if mallopt(M_MMAP_THRESHOLD, KEPT_BLOCK):
        return "freed memory is kept"
    mallopt(M_MMAP_THRESHOLD, OLD_KEPT_BLOCK)
    return "freed memory is kept, in blocks of up to 32 MB: this glibc keeps no larger ones"


def _glibc_mallopt() -> "Callable[[int, int], int] | None":
    try:
        return ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return None


# Of a sum of a thousand products of fp32, relative to the largest; bf16 would give 3e-3.
LARGEST_ERROR = 2e-5


def _fast_products() -> str:
    """Sends fp32 products to oneDNN where its result is fp32's.

    torch's own choice runs at half speed on some CPUs. oneDNN is asked for by allowing it to round
    to bf16, which it does on CPUs with matrix units (AMX) alone: so the error decides.
    """
    onednn = torch.backends.mkldnn
    if not hasattr(onednn, "matmul") or not onednn.is_available():  # type: ignore[no-untyped-call]
        return "fp32 products: this torch cannot send them to oneDNN"
    matmul = onednn.matmul
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(128, 1024, generator=generator)
    right = torch.randn(1024, 256, generator=generator)
    exact = left.double() @ right.double()
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    error = float((left @ right - exact).abs().max() / exact.abs().max())
    if error <= LARGEST_ERROR:
        return "fp32 products by oneDNN, exact here"
    matmul.fp32_precision = before
    return "fp32 products by torch's choice: oneDNN would round them to bf16 on this CPU"
