"""What a table of speeds does not tell: single lines, the first line, and the floor of a step.

# R rows of a search, H hidden, V vocabulary
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import IO, Any

import torch
import training_parts as parts
from training_processes import QUIET, in_a_process
from training_programs import OURS, THEIRS
from translation_programs import Setting, same_model

from s2s_cli.core.prepared import PackedText
from s2s_cli.core.translator import Translator

SHORT = 10  # words at most of a line for the latency
WARM_UP = 20  # lines that do not count
SENTENCES, BEAM = 64, 5  # of the floor
BIG = (2048, 2048, 2048)


@contextmanager
def translating(setting: Setting, beam: int) -> Iterator[tuple[IO[str], IO[str]]]:
    """A `s2s translate` between two pipes: what it reads, and what it writes."""
    options = {
        "--model": setting.model,
        "--beam-size": beam,
        "--precision": setting.precision,
        "--threads": setting.threads,
        "--device": setting.device,
    }
    command = [sys.executable, "-m", "s2s_cli", "translate", "--quiet"]
    command += [str(text) for option in options.items() for text in option]
    environment = {key: value for key, value in os.environ.items() if key not in QUIET}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        if process.stdin is None or process.stdout is None:
            raise ValueError("there are no pipes")
        try:
            yield process.stdin, process.stdout
        finally:
            process.stdin.close()


def answer(pipes: tuple[IO[str], IO[str]], line: str) -> float:
    """Seconds until a line's translation is there."""
    given, found = pipes
    started = time.perf_counter()
    print(line, file=given, flush=True)
    if not found.readline():
        raise SystemExit("s2s translate has failed; see above")
    return time.perf_counter() - started


# --- single lines ----------------------------------------------------------------------------


def latency(settings: list[Setting], beams: list[int], lines: list[str]) -> list[dict[str, Any]]:
    """Seconds of one short line after another, in each precision and with each beam."""
    short = [line for line in lines if len(line.split()) <= SHORT]
    if not short:
        raise SystemExit(f"no line has {SHORT} words or fewer")
    found = []
    for setting in settings:
        for beam in beams:
            print(f"latency of beam {beam}, {setting.precision}", file=sys.stderr)
            with translating(setting, beam) as pipes:
                for number in range(WARM_UP):
                    answer(pipes, short[number % len(short)])
                seconds = [answer(pipes, line) for line in short]
            found.append({"precision": setting.precision, "beam": beam, "seconds": seconds})
    return found


def latency_table(found: list[dict[str, Any]]) -> list[str]:
    rows = [f"| lines of {SHORT} words or fewer, ms a line | beam | lines | p50 | p99 | most |"]
    rows += ["|---|---|---|---|---|---|"]
    for each in found:
        times = sorted(1e3 * seconds for seconds in each["seconds"])
        late = times[min(len(times) - 1, int(0.99 * len(times)))]
        cells = [each["precision"], str(each["beam"]), str(len(times))]
        cells += [f"{time:.1f}" for time in (statistics.median(times), late, times[-1])]
        rows.append(f"| s2s {' | '.join(cells)} |")
    return rows


# --- the first line --------------------------------------------------------------------------


def start(setting: Setting, rounds: int, line: str) -> dict[str, list[float]]:
    """Seconds from nothing to the first line out, and of importing torch, in turns."""
    found: dict[str, list[float]] = {"s2s translate": [], 'python -c "import torch"': []}
    for number in range(rounds + 1):  # the first finds the files cold
        print(f"start {number} of {rounds}", file=sys.stderr)
        started = time.perf_counter()
        with translating(setting, beam=5) as pipes:
            answer(pipes, line)
            ours = time.perf_counter() - started
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        if number:
            found["s2s translate"].append(ours)
            found['python -c "import torch"'].append(time.perf_counter() - started)
    return found


def start_table(found: dict[str, list[float]]) -> list[str]:
    rows = ["| cold start to the first line | s: median (least to most) |", "|---|---|"]
    for name, seconds in found.items():
        middle = statistics.median(seconds)
        rows.append(f"| {name} | {middle:.2f} ({min(seconds):.2f} to {max(seconds):.2f}) |")
    ours, torch_alone = found.values()
    ratios = [one / other for one, other in zip(ours, torch_alone, strict=True)]
    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return [*rows, f"| times torch alone | {ratio} |"]


# --- the floor -------------------------------------------------------------------------------


@torch.inference_mode()
def step_of_ours(setting: Setting, lines: list[str]) -> float:
    """Seconds of a step of s2s's model as its search calls it, the fastest of many."""
    model = setting.load()
    scorer = Translator([model], None, setting.precision)._scorer
    encoded = sorted(model.source_tokenizer.encode(lines), key=len, reverse=True)
    rows = torch.arange(len(encoded), device=scorer.device).repeat_interleave(BEAM)
    state = scorer.start(PackedText.pack(encoded)).select(rows)
    words = torch.arange(3, 3 + len(rows), device=scorer.device)
    _, state = scorer.step(words, state)  # now every row has its own numbers
    return parts.fastest(lambda: scorer.step(words, state), scorer.device, seconds=2.0)


@torch.inference_mode()
def step_of_theirs(setting: Setting, lines: list[str]) -> float:
    """The same of torch's `nn.LSTM`, called with one step, and a linear layer."""
    plain = same_model(setting.load())
    device = plain.output.weight.device
    size, lstm = len(lines) * BEAM, plain.decoder
    shape = (lstm.num_layers, size, lstm.hidden_size)
    state = (torch.randn(shape, device=device), torch.randn(shape, device=device))
    words = torch.arange(3, 3 + size, device=device)

    def step() -> object:
        outputs, after = lstm(plain.target_embedding(words)[None], state)
        return plain.output(outputs[0]), after

    return parts.fastest(step, device, seconds=2.0)


def multiply_adds(setting: Setting, rows: int) -> tuple[int, int]:
    """Of all layers, and of the softmax, in a step.

    What the first layer reads of a word can be looked up, so that is none of them.
    """
    model = setting.load()
    decoder = model.recipe.model.decoder
    gates = parts.lstm(0, decoder.hidden, decoder.layers)
    return rows * gates, rows * decoder.hidden * model.target_tokenizer.size


def floor(settings: list[Setting], lines: list[str]) -> dict[str, Any]:
    """Steps of R rows, in each precision, beside what the machine's products would take."""
    chosen = lines[:SENTENCES]
    rows = BEAM * len(chosen)
    counts = multiply_adds(settings[0], rows)
    decoder = settings[0].load().recipe.model.decoder
    vocabulary = counts[1] // rows // decoder.hidden
    shapes = {
        "large": BIG,
        "softmax": (rows, decoder.hidden, vocabulary),
        "gates": (rows, 2 * decoder.hidden, 4 * decoder.hidden),
    }
    found: dict[str, Any] = {"rows": rows, "multiply-adds": counts, "shapes": shapes}
    found["peaks"], found["steps"] = {}, []
    fp32 = replace(settings[0], precision="fp32")
    programs = [(THEIRS, step_of_theirs, fp32)]
    programs += [(OURS, step_of_ours, setting) for setting in settings]
    for name, step, setting in programs:
        print(f"floor: {name} {setting.precision}", file=sys.stderr)
        kind = "fp32" if setting.precision == "fp32" else "bf16"  # int8 has no peak of its own
        if kind not in found["peaks"]:
            place = replace(setting, precision=kind)
            found["peaks"][kind] = in_a_process(parts.peaks, place, shapes)
        seconds = in_a_process(step, setting, chosen)
        found["steps"].append(
            {"name": name, "precision": setting.precision, "floor": kind, "seconds": seconds}
        )
    return found


def floor_table(found: dict[str, Any]) -> list[str]:
    rows = ["| products | precision | GFLOP/s |", "|---|---|---|"]
    for kind, peaks in found["peaks"].items():
        for name, rate in peaks.items():
            shape = " x ".join(str(number) for number in found["shapes"][name])
            rows.append(f"| {name}: {shape} | {kind} | {2 * rate / 1e9:,.0f} |")
    layers, softmax = found["multiply-adds"]
    work = (
        f"A step of {found['rows']} rows: {2 * layers / 1e9:.2f} GFLOP in the layers, "
        f"{2 * softmax / 1e9:.2f} in the softmax; what the first layer reads is looked up."
    )
    rows += [
        "",
        work,
        "",
        "| step | floor, ms | achieved, ms | of the floor |",
        "|---|---|---|---|",
    ]
    for each in found["steps"]:
        best = max(found["peaks"][each["floor"]].values())
        least = (layers + softmax) / best
        name = f"{each['name']} {each['precision']}"
        note = "" if each["floor"] == each["precision"] else f" (of {each['floor']})"
        rows.append(
            f"| {name} | {least * 1e3:.2f}{note} | {each['seconds'] * 1e3:.2f} "
            f"| {least / each['seconds']:.0%} |"
        )
    return rows
