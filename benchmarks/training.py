"""How fast s2s trains: against a straightforward program, by parts, and against the machine.

    python benchmarks/training.py --data DIR [--decoder attention] [--precision bf16]
    python benchmarks/training.py --peers DIR --peer-scripts DIR
    python benchmarks/training.py --size paper --device cuda --precision bf16

DIR of `--data` holds train.{en,fr}.gz, such as Multi30k; without it this says so and stops. All
programs train the same model on the same batches in turns, after a round that does not count.
`--json FILE` keeps all raw numbers. It exits with 1 where s2s and the straightforward program do
not compute the same.
"""

import argparse
import json
import os
import platform
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import training_parts as parts
import training_peers as peers
from training_processes import Child, compete, in_a_process, serve
from training_programs import FUSED, OURS, THEIRS, compare
from training_setting import DECODERS, Setting, setting_of

SECTIONS = ("speed", "split", "floor", "data", "peers")
TOLERANCE = 1e-4  # between both programs' losses and norms, relative


# --- measurements ----------------------------------------------------------------------------


def measure(setting: Setting, options: argparse.Namespace) -> dict[str, Any]:
    """All raw numbers of the sections that were asked for, but those of the other toolkits."""
    found: dict[str, Any] = {}
    wanted = options.section
    if "speed" in wanted:
        found["same"] = in_a_process(compare, setting)
    names = [OURS, THEIRS, FUSED] if "speed" in wanted else [OURS]
    with ExitStack() as stack:
        children, found["facts"] = {}, {}
        for name in names:  # one after another, each alone while it warms up
            print(f"{name} warms up", file=sys.stderr)
            children[name] = stack.enter_context(Child(serve, name, setting))
            found["facts"][name] = children[name].answer()
        if options.section != ["peers"]:
            found["rounds"] = compete(children, options.rounds)
        ours = children[OURS]
        if "split" in wanted:
            found["split"] = ours.ask((parts.split, options.rounds))
        if "floor" in wanted:
            found["floor"] = ours.ask((parts.floor,))
        if "data" in wanted:
            found["data"] = ours.ask((parts.data, options.rounds))
    if "floor" in wanted:
        found["peaks"] = in_a_process(parts.peaks, setting, found["floor"]["shapes"])
    return found


def differences(values: dict[str, list[float]]) -> list[float]:
    """Relative, of loss and norm on a batch."""
    pairs = zip(values[OURS], values[THEIRS], strict=True)
    return [abs(ours - theirs) / abs(theirs) for ours, theirs in pairs]


def is_same(same: dict[str, dict[str, list[float]]]) -> bool:
    """Whether both programs compute the same."""
    return all(off <= TOLERANCE for values in same.values() for off in differences(values))


def machine() -> dict[str, Any]:
    """What it ran on."""
    names = [platform.processor() or platform.machine()]
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text(encoding="utf-8").splitlines()
        names = [line.partition(": ")[2] for line in lines if line.startswith("model name")][:1]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "processor": names[0] if names else "unknown",
        "cores": os.cpu_count(),
        "gpu": device,
        "torch": torch.__version__,
        "load": os.getloadavg()[0],
    }


# --- tables ----------------------------------------------------------------------------------


def same_table(same: dict[str, dict[str, list[float]]]) -> list[str]:
    rows = ["| fp32, no dropout | program | loss a word | norm of the gradient |"]
    rows += ["|---|---|---|---|"]
    for batch, values in same.items():
        for name, (loss, norm) in values.items():
            rows.append(f"| {batch} | {name} | {loss:.6f} | {norm:.6f} |")
        off = [f"{each:.1e}" for each in differences(values)]
        rows.append(f"| {batch} | relative difference | {' | '.join(off)} |")
    return [*rows, "", "The same." if is_same(same) else "**NOT the same.**"]


SPEED = (
    "program",
    "target tokens/s",
    "both sides' words/s",
    "ms an update",
    "peak memory, GB",
    "parameters",
    "loss",
    "cores others used",
    "s2s is faster, times: median (least to most)",
)


def speed_table(found: dict[str, Any]) -> list[str]:
    rows = [f"| {' | '.join(SPEED)} |", "|---" * len(SPEED) + "|"]
    for name, rounds in found["rounds"].items():
        facts = found["facts"][name]
        seconds = statistics.median(each["seconds"] for each in rounds)
        both = facts["source words"] + facts["target words"]
        cells = [
            name,
            f"{facts['target words'] / seconds:,.0f}",
            f"{both / seconds:,.0f}",
            f"{seconds / facts['updates'] * 1e3:,.1f}",
            f"{max(each['peak'] for each in rounds) / 1e9:.2f}",
            f"{facts['parameters']:,}",
            f"{rounds[-1]['loss']:.3f}",
            f"{statistics.median(each['foreign'] for each in rounds):.2f}",
            "" if name == OURS else times_faster(found["rounds"][OURS], rounds),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def times_faster(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> str:
    """The ratio of each round's seconds: median and range."""
    pairs = zip(ours, theirs, strict=True)
    ratios = [slow["seconds"] / fast["seconds"] for fast, slow in pairs]
    return f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})"


def split_table(found: dict[str, Any]) -> list[str]:
    updates = found["facts"][OURS]["updates"]
    rows = ["| part of an update | ms | share |", "|---|---|---|"]
    whole = statistics.median(each["whole"] for each in found["split"])
    for part in (*parts.PARTS, "rest", "whole"):
        seconds = statistics.median(each[part] for each in found["split"])
        rows.append(f"| {part} | {seconds / updates * 1e3:.2f} | {seconds / whole:.1%} |")
    return rows


def floor_table(found: dict[str, Any]) -> list[str]:
    updates, best = found["facts"][OURS]["updates"], max(found["peaks"].values())
    rows = ["| products | GFLOP/s |", "|---|---|"]
    for name, rate in found["peaks"].items():
        shape = " x ".join(str(number) for number in found["floor"]["shapes"][name])
        rows.append(f"| {name}: {shape} | {2 * rate / 1e9:,.0f} |")
    achieved = {}
    if "split" in found:
        for part in found["floor"]["multiply-adds"]:
            achieved[part] = statistics.median(each[part] for each in found["split"])
    rows += ["", "| products of an update | GFLOP | floor, ms | achieved, ms | of the floor |"]
    rows += ["|---|---|---|---|---|"]
    total = 0.0
    for part, count in found["floor"]["multiply-adds"].items():
        trained = 3 * count / updates  # backward is twice forward
        total += trained
        rows.append(floor_row(part, trained, best, achieved.get(part), updates))
    whole = statistics.median(each["seconds"] for each in found["rounds"][OURS])
    rows.append(floor_row("**whole update**", total, best, whole, updates))
    rows += ["", "| real words in the batches of | source | target |", "|---|---|---|"]
    for name, shares in found["floor"]["real words"].items():
        rows.append(f"| one {name} | {shares['source']:.1%} | {shares['target']:.1%} |")
    return rows


def floor_row(name: str, count: float, best: float, seconds: float | None, updates: int) -> str:
    """count: multiply-adds an update; best: the machine's a second; seconds: of a round."""
    floor = count / best
    cells = [name, f"{2 * count / 1e9:,.1f}", f"{floor * 1e3:,.1f}", "", ""]
    if seconds is not None:
        cells[3:] = [f"{seconds / updates * 1e3:,.1f}", f"{floor / (seconds / updates):.0%}"]
    return f"| {' | '.join(cells)} |"


def data_table(found: dict[str, Any]) -> list[str]:
    facts = found["facts"][OURS]
    seconds = statistics.median(found["data"])
    whole = statistics.median(each["seconds"] for each in found["rounds"][OURS])
    rows = [
        "| data | |",
        "|---|---|",
        f"| ms to make a batch | {seconds / facts['updates'] * 1e3:.3f} |",
        f"| times faster than training | {whole / seconds:,.0f} |",
    ]
    return rows + [
        f"| memory of its own (RssAnon), {name}, MB | {size / 1e6:,.1f} |"
        for name, size in facts["memory"].items()
    ]


def report(setting: Setting, found: dict[str, Any]) -> None:
    """Prints all that was measured."""
    told = found["machine"]
    print(
        f"# {setting.size}, {setting.decoder}, {setting.precision}\n\n"
        f"{told['processor']}, {told['cores']} cores, {setting.threads} threads, GPU "
        f"{told['gpu']}, torch {told['torch']}; on {setting.device}; "
        f"load before {told['load']:.1f}."
    )
    if "facts" in found:
        facts = found["facts"][OURS]
        print(f"{facts['updates']} updates a round. s2s: {'; '.join(facts['techniques'])}.")
    tables = {
        "The same?": ("same", lambda: same_table(found["same"])),
        "Speed": ("same", lambda: speed_table(found)),
        "Parts": ("split", lambda: split_table(found)),
        "The floor of this machine": ("floor", lambda: floor_table(found)),
        "Data": ("data", lambda: data_table(found)),
        "Other toolkits": ("peers", lambda: peers.table(found["peers"])),
    }
    for title, (key, lines) in tables.items():
        if found.get(key):
            print(f"\n## {title}\n", *lines(), sep="\n")


# --- options ---------------------------------------------------------------------------------


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=["small", "paper"], default="small")
    parser.add_argument("--decoder", choices=DECODERS, default="plain", help="of the small size")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--updates", type=int, default=0, help="a round; small 20, paper 5")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--section", choices=SECTIONS, action="append", help="by default all")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/multi30k"))
    parser.add_argument("--peers", type=Path, help="where other toolkits and their text lie")
    parser.add_argument("--peer-scripts", type=Path, default=Path("../shared/peers"))
    parser.add_argument("--peer", choices=peers.PEERS, action="append", help="by default all")
    parser.add_argument("--peer-updates", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("runs/training"), help="prepared text")
    parser.add_argument("--json", type=Path, help="all raw numbers")
    options = parser.parse_args()
    if options.size == "paper" and (options.decoder != "plain" or options.peers):
        parser.error("--decoder and --peers are of --size small")
    options.section = options.section or list(SECTIONS)
    return options


def main() -> None:
    options = parse()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    setting = setting_of(options, options.decoder, options.precision)
    if setting is None:
        return
    found: dict[str, Any] = {"machine": machine()}
    if options.section != ["peers"]:
        found |= measure(setting, options)
    if "peers" in options.section:
        if options.peers:
            found["peers"] = peers.compare_peers(options)
        else:
            print("other toolkits are skipped: no --peers DIR", file=sys.stderr)
    if options.json:
        found["setting"] = {key: str(value) for key, value in vars(setting).items()}
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    report(setting, found)
    if "same" in found and not is_same(found["same"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
