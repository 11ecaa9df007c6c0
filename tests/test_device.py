"""What a process switches on to be fast, and where that steps aside."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from s2s_cli.core import device
from s2s_cli.core.device import accelerate, autocast, find_device, set_threads, usable_precision
from s2s_cli.core.errors import DeviceError
from s2s_cli.core.events import Started
from s2s_cli.core.prepared import Prepared
from s2s_cli.core.recipe import load
from s2s_cli.core.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment says nothing of memory."""
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)


class Matmul:
    """A product whose result is off by so much wherever it is allowed to round."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: float) -> None:
        self.fp32_precision = "none"
        exact = torch.Tensor.__matmul__

        def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            found = exact(left, right)
            return found * (1 + error) if self.fp32_precision == "bf16" else found

        monkeypatch.setattr(torch.Tensor, "__matmul__", product)
        monkeypatch.setattr(torch.backends.mkldnn, "matmul", self)


@pytest.mark.parametrize(
    ("error", "precision", "line"),
    [
        (1e-6, "bf16", "fp32 products by oneDNN, exact here"),
        (4e-3, "none", "fp32 products by torch's choice: oneDNN would round them to bf16"),
    ],
)
def test_the_fast_product_is_taken_where_it_is_exact(
    error: float, precision: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU with matrix units rounds to bf16, which is off by some 3e-3."""
    matmul = Matmul(monkeypatch, error)
    assert accelerate(CPU, "fp32")[1].startswith(line)
    assert matmul.fp32_precision == precision


def test_an_older_torch_keeps_its_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(type(torch.backends.mkldnn), "matmul")
    assert accelerate(CPU, "fp32")[1].endswith("this torch cannot send them to oneDNN")


def test_products_stay_fp32() -> None:
    """Whatever the choice was: sums of 500 products are right to 1e-6 of the largest."""
    accelerate(CPU, "fp32")
    torch.manual_seed(1)
    left, right = torch.randn(300, 500), torch.randn(500, 70)
    exact = left.double() @ right.double()
    assert (left @ right - exact).abs().max() < 5e-6 * exact.abs().max()
    turned = (left.T.contiguous().T @ right - exact).abs().max()
    assert turned < 5e-6 * exact.abs().max()


@pytest.mark.parametrize(
    ("environment", "mallopt", "line"),
    [
        ({}, lambda *_: 1, "freed memory is kept"),
        ({}, lambda *_: 0, "freed memory goes back to the system: glibc refuses to keep it"),
        (
            {},
            lambda _, size: size <= 1 << 25 or size == 2**31 - 1,
            "this glibc keeps no larger ones",
        ),
        ({}, None, "freed memory goes back to the system: no glibc here"),
        ({"MALLOC_TRIM_THRESHOLD_": "1"}, lambda *_: 1 / 0, "as MALLOC_TRIM_THRESHOLD_ in the"),
        (
            {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1"},
            lambda *_: 1 / 0,
            "as GLIBC_TUNABLES",
        ),
        ({"GLIBC_TUNABLES": "glibc.rtld.nns=4"}, lambda *_: 1, "freed memory is kept"),
    ],
)
def test_memory_is_kept_where_glibc_is_there(
    environment: dict[str, str], mallopt: Any, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(device, "_glibc_mallopt", lambda: mallopt)
    assert line in accelerate(CPU, "fp32")[0]


KEEPS = """
import torch
from s2s_cli.core.device import accelerate

def faults():
    return int(open("/proc/self/stat").read().rsplit(") ", 1)[1].split()[7])

def pages_of_later_blocks():
    for _ in range(4):
        torch.ones(12_000_000)  # 48 MB
    before = faults()
    for _ in range(4):
        torch.ones(12_000_000)
    return faults() - before

stock = pages_of_later_blocks()
print(accelerate(torch.device("cpu"), "fp32")[0])
print(stock, pages_of_later_blocks())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts Linux's page faults")
def test_a_kept_block_comes_without_new_pages() -> None:
    """A block of 48 MB has 12,000 of them, which the system fills with zeros otherwise."""
    set_apart = ("MALLOC_", "GLIBC_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(set_apart)}
    done = subprocess.run(
        [sys.executable, "-c", KEEPS], env=environment, capture_output=True, text=True, check=True
    )
    line, counts = done.stdout.splitlines()
    if line != "freed memory is kept":
        pytest.skip(line)
    stock, kept = map(int, counts.split())
    if stock < 4 * 11_000:
        pytest.skip(f"only {stock} new pages even without keeping: huge ones, perhaps")
    assert kept < stock / 10


@pytest.mark.parametrize(
    ("capabilities", "told"),
    [
        ({"architecture": "x86_64", "avx512_bf16": True}, False),
        ({"architecture": "x86_64", "amx_bf16": True}, False),
        ({"architecture": "x86_64"}, True),
        ({"architecture": "aarch64"}, False),
        ({}, False),
    ],
)
def test_a_cpu_without_bf16_is_told_of(
    capabilities: dict[str, Any], told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert (device.SLOW_BF16 in accelerate(CPU, "bf16")) == told
    assert device.SLOW_BF16 not in accelerate(CPU, "fp32")


@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_what_needs_cuda_says_so(precision: str) -> None:
    with pytest.raises(DeviceError, match=f"{precision} needs a CUDA device"):
        autocast(CPU, precision)


def test_int8_is_a_cpu_s_and_needs_its_products(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match="needs a CPU; use --device cpu"):
        usable_precision(torch.device("cuda"), "int8")
    assert usable_precision(CPU, "int8") == "int8"
    monkeypatch.setattr(device, "multiplies_integers", lambda: False)
    with pytest.raises(DeviceError, match="no products of int8"):
        usable_precision(CPU, "int8")


@pytest.mark.parametrize("supported", [True, False])
def test_a_gpu_without_bf16_computes_in_fp32(
    supported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: supported)
    cuda = torch.device("cuda")
    assert usable_precision(cuda, "bf16") == ("bf16" if supported else "fp32")
    for precision in ("fp32", "tf32", "fp16"):
        assert usable_precision(cuda, precision) == precision
    if not supported:
        assert isinstance(autocast(cuda, "bf16"), contextlib.nullcontext)
    assert usable_precision(CPU, "bf16") == "bf16"


@pytest.mark.parametrize("new", [True, False], ids=["torch 2.9", "before"])
def test_tf32_only_where_it_is_asked_for(new: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Off by choosing the device, on by the precision; by the names that this torch has."""
    matmul, rnn = SimpleNamespace(), SimpleNamespace()
    cudnn = SimpleNamespace(rnn=rnn) if new else SimpleNamespace()
    monkeypatch.setattr(torch.backends, "cuda", SimpleNamespace(matmul=matmul))
    monkeypatch.setattr(torch.backends, "cudnn", cudnn)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    def allowed() -> set[Any]:
        if new:
            return {matmul.fp32_precision, rnn.fp32_precision}
        return {matmul.allow_tf32, cudnn.allow_tf32}

    found = find_device("cuda")
    assert allowed() == ({"ieee"} if new else {False})
    for precision, rounded in (("bf16", False), ("tf32", True), ("fp32", False)):
        (line,) = accelerate(found, precision)
        assert line.endswith("not in TF32") != rounded
        assert allowed() == ({"tf32" if rounded else "ieee"} if new else {rounded})


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("1000 100000\n", 1),
        ("max 100000\n", None),
        (None, None),
    ],
)
def test_cores_that_a_container_lends(text: str | None, cores: int | None, tmp_path: Path) -> None:
    file = tmp_path / "cpu.max"
    if text is not None:
        file.write_text(text)
    assert device._lent_cores(file) == cores


def test_threads_are_those_asked_for_or_those_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", said.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(device, "_lent_cores", lambda _: 3)
    set_threads(5)
    set_threads(0)  # OMP_NUM_THREADS of the tests is a choice that stands
    monkeypatch.delenv("OMP_NUM_THREADS")
    set_threads(0)
    monkeypatch.setattr(device, "_lent_cores", lambda _: None)
    set_threads(0)
    assert said == [5, 3]


@pytest.mark.parametrize(
    ("given", "spins"),
    [
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_the_command_keeps_waiting_threads_from_spinning(
    given: dict[str, str], spins: str | None
) -> None:
    """Before torch is there, which reads it once; what a person has said stands."""
    code = (
        "import json, os, sys; import s2s_cli.app; "
        "print(json.dumps([os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules]))"
    )
    clean = {
        key: value
        for key, value in os.environ.items()
        if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean | given, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [spins, False]


def test_the_first_event_tells_what_is_on(
    recipe_file: Path, prepared: Prepared, tmp_path: Path
) -> None:
    recipe = load(str(recipe_file), ["optimizer={kind='sgd',lr=0.5}"])
    trainer = Trainer(recipe, prepared, tmp_path / "run", CPU)
    events = trainer.train()
    first = next(events)
    events.close()
    assert isinstance(first, Started)
    assert first.techniques[:2] == tuple(accelerate(CPU, "fp32"))
    assert first.techniques[2:] == (
        "gradients of word vectors by rows: encoder.embedding.weight, decoder.embedding.weight",
        "clipping within the learning rate",
    )
