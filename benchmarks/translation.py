"""How fast s2s translates: beside a straightforward program and other toolkits, and the machine.

    python benchmarks/translation.py --model FILE --source FILE --reference FILE
    python benchmarks/translation.py ... --peers DIR --peer-scripts DIR [--marian FILE]
    python benchmarks/translation.py --model FILE --source FILE --section latency

The model has LSTMs without attention and reads pre-segmented text, SentencePiece's pieces parted
by spaces; so are the source and the reference. All programs translate the whole file, with their
models in memory, in turns, after a round that does not count. `--json FILE` keeps all raw numbers.
"""

import argparse
import json
import os
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import translation_sections as sections
from training import machine
from training_programs import OURS, THEIRS
from translation_peers import ONMT, peers
from translation_processes import Program, Server, Text, compete, file_of, output_of, start_all
from translation_programs import Setting, lines_of, write_lines

from s2s_cli.core.metrics import evaluate

SECTIONS = ("speed", "latency", "start", "floor")


# --- measurements ----------------------------------------------------------------------------


def programs(settings: list[Setting], text: Text, options: argparse.Namespace) -> dict[str, Any]:
    """All that translate the file, by name."""
    script = str(Path(__file__).with_name("translation_programs.py"))
    fp32 = Setting(options.model, "fp32", options.device, options.threads, options.batch)
    asked = [(f"{OURS} {setting.precision}", OURS, setting) for setting in settings]
    asked.append((THEIRS, THEIRS, fp32))
    found: dict[str, Program] = {}
    for name, program, setting in asked:
        command = [sys.executable, script, program, setting.to_json()]
        log = file_of(options.out, name, "log")
        found[name] = Server(command, text, setting.threads, log)
    if options.peers:
        found |= peers(fp32, text, options)
    return found


def speed(settings: list[Setting], text: Text, options: argparse.Namespace) -> dict[str, Any]:
    """The rounds of all programs, and what they have said."""
    running = programs(settings, text, options)
    try:
        starts = start_all(running, options.starts, options.out)
        rounds = compete(running, options.beam, options.rounds, options.out)
    finally:
        for program in running.values():
            program.stop()
    references = [detokenized(line) for line in lines_of(options.out / "reference.txt")]
    said = {}
    for beam in sorted(options.beam):
        for name in running:
            lines = lines_of(output_of(options.out, name, beam))
            if len(lines) != len(references):
                raise SystemExit(f"{name} gave {len(lines)} lines for {len(references)}")
            texts = [detokenized(line) for line in lines]
            [bleu] = evaluate(texts, [references], ["bleu"])
            said[f"{name}, beam {beam}"] = {
                "pieces": sum(len(line.split()) for line in lines),
                "bleu": bleu.value,
                "signature": bleu.signature,
            }
    weights = [name for name in running if name.startswith((OURS, THEIRS, ONMT))]
    found = {"names": list(running), "starts": starts, "rounds": rounds, "said": said}
    return found | {"same": same(weights, options), "lines": len(references)}


def detokenized(line: str) -> str:
    """Text from SentencePiece's pieces; a line without any is text already."""
    if "\u2581" not in line:
        return line
    return "".join(line.split()).replace("\u2581", " ").strip()


def same(names: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """How many lines of each program with the same weights are those of the first.

    `cut`: of the others those of which one is the beginning of the other: limits of length differ.
    """
    found = []
    for beam in sorted(options.beam):
        first = lines_of(output_of(options.out, names[0], beam))
        for name in names[1:]:
            lines = lines_of(output_of(options.out, name, beam))
            pairs = list(zip(first, lines, strict=True))
            unlike = [(one, other) for one, other in pairs if one.split() != other.split()]
            cut = sum(one.startswith(other) or other.startswith(one) for one, other in unlike)
            equal = len(pairs) - len(unlike)
            record = {"beam": beam, "program": name, "first": names[0]}
            found.append({**record, "equal": equal, "cut": cut, "lines": len(pairs)})
    return found


# --- tables ----------------------------------------------------------------------------------

COLUMNS = (
    "program",
    "sentences/s",
    "target pieces/s",
    "pieces out",
    "BLEU",
    "peak memory, GB",
    "processor s",
    "cores others used",
    f"times {ONMT}: median (least to most)",
    f"times {THEIRS}: median (least to most)",
)


def speed_table(found: dict[str, Any]) -> list[str]:
    runs: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    peaks: dict[tuple[str, int], float] = {}
    for run in found["rounds"]:
        key = (run["program"], run["beam"])
        peaks.setdefault(key, run["peak"])  # of the first pass, see `compete`
        if run["round"]:
            runs[key].append(run)
    signature = next(iter(found["said"].values()))["signature"]
    rows = [
        f"{found['lines']} lines, median of {len(next(iter(runs.values())))} rounds.",
        "EOS is not counted in pieces. Commands that start anew: their start is taken off.",
        f"BLEU of detokenised text: {signature}. Programs with attention bring other models.",
        "",
        "| start: from nothing to a first line | s: median (least to most) |",
        "|---|---|",
    ]
    rows += [f"| {name} | {spread(found['starts'][name])} |" for name in found["names"]]
    rows.append("")
    for beam in sorted({beam for _, beam in runs}):
        title = "greedy" if beam == 1 else f"beam {beam}"
        rows += [f"| {title}: {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        for name in found["names"]:
            mine = runs[name, beam]
            seconds = statistics.median(run["seconds"] for run in mine)
            said = found["said"][f"{name}, beam {beam}"]
            cells = [
                name,
                f"{found['lines'] / seconds:,.0f}",
                f"{said['pieces'] / seconds:,.0f}",
                f"{said['pieces']:,}",
                f"{said['bleu']:.2f}",
                f"{peaks[name, beam] / 1e9:.2f}",
                f"{statistics.median(run['own'] for run in mine):.2f}",
                f"{statistics.median(run['foreign'] for run in mine):.2f}",
                *(times(mine, runs.get((other, beam)), name == other) for other in (ONMT, THEIRS)),
            ]
            rows.append(f"| {' | '.join(cells)} |")
        rows.append("")
    return rows


def times(mine: list[dict[str, Any]], theirs: list[dict[str, Any]] | None, itself: bool) -> str:
    """How much faster, of each round."""
    if theirs is None or itself:
        return ""
    ratios = [slow["seconds"] / fast["seconds"] for fast, slow in zip(mine, theirs, strict=True)]
    return spread(ratios)


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def same_table(found: dict[str, Any]) -> list[str]:
    rows = [
        "| same weights | beam | lines equal to | equal | of the others cut |",
        "|---" * 5 + "|",
    ]
    for each in found["same"]:
        equal = f"{each['equal']} of {each['lines']} ({each['equal'] / each['lines']:.1%})"
        cells = [each["program"], str(each["beam"]), each["first"], equal, str(each["cut"])]
        rows.append(f"| {' | '.join(cells)} |")
    note = "Beams may differ in more than ties: whether what has ended keeps its place in the beam."
    return [*rows, "", note]


def report(found: dict[str, Any], options: argparse.Namespace) -> None:
    """Prints all that was measured."""
    told = found["machine"]
    print(
        f"# Translation with {options.model}\n\n{told['processor']}, {told['cores']} cores, "
        f"{options.threads} threads, torch {told['torch']}; on {options.device}; batches of "
        f"{options.batch}, of s2s {options.our_batch or 'its own choice'}; "
        f"load before {told['load']:.1f}."
    )
    tables = {
        "Speed": ("speed", lambda: speed_table(found["speed"])),
        "The same?": ("speed", lambda: same_table(found["speed"])),
        "Single lines": ("latency", lambda: sections.latency_table(found["latency"])),
        "Start": ("start", lambda: sections.start_table(found["start"])),
        "The floor of a step": ("floor", lambda: sections.floor_table(found["floor"])),
    }
    for title, (key, lines) in tables.items():
        if key in found:
            print(f"\n## {title}\n", *lines(), sep="\n")


# --- options ---------------------------------------------------------------------------------


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a model file of s2s, or a run's folder")
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--reference", type=Path, help="the speed's section needs it, for BLEU")
    parser.add_argument("--lines", type=int, default=0, help="only the first so many")
    parser.add_argument("--section", choices=SECTIONS, action="append", help="by default all")
    parser.add_argument("--beam", type=int, action="append", help="by default 1, 5 and 12")
    precisions = ["fp32", "bf16", "int8"]
    parser.add_argument(
        "--precision", choices=precisions, action="append", help="by default fp32 and bf16"
    )
    parser.add_argument("--device", default="cpu", help="of s2s and the straightforward program")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--batch", type=int, default=64, help="sentences, of all but s2s")
    parser.add_argument("--our-batch", type=int, default=0, help="of s2s; 0: as it chooses")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--starts", type=int, default=3, help="of each program")
    parser.add_argument("--peers", type=Path, help="where other toolkits lie")
    parser.add_argument("--peer-scripts", type=Path, default=Path("../shared/peers"))
    parser.add_argument("--joeynmt", type=Path, metavar="DIR", help="a model in runs/ of --peers")
    parser.add_argument("--marian", type=Path, metavar="FILE", help="a model.npz, likewise")
    parser.add_argument("--out", type=Path, default=Path("runs/translation"))
    parser.add_argument("--json", type=Path, help="all raw numbers")
    options = parser.parse_args()
    options.section = options.section or list(SECTIONS)
    options.beam = sorted(set(options.beam or [1, 5, 12]))
    options.precision = options.precision or ["fp32", "bf16"]
    if "speed" in options.section and not options.reference:
        parser.error("--section speed needs --reference")
    if (options.joeynmt or options.marian) and not options.peers:
        parser.error("--joeynmt and --marian need --peers")
    if options.peers and options.device != "cpu":
        parser.error("the other toolkits run on the CPU: leave out --peers or --device")
    return options


def chosen_text(options: argparse.Namespace) -> Text:
    """The lines that were asked for, in files of their own."""
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    text = Text(options.out / "source.txt", options.out / "first.txt")
    files = [options.source, options.reference or options.source]
    if missing := [file for file in files if not file.exists()]:
        raise SystemExit(f"there is no {missing[0]}")
    lines, references = map(lines_of, files)
    if len(lines) != len(references):
        raise SystemExit(f"{len(lines)} lines of source, but {len(references)} of reference")
    pairs = [pair for pair in zip(lines, references, strict=True) if pair[0].strip()]
    pairs = pairs[: options.lines or None]
    write_lines(text.whole, [source for source, _ in pairs])
    write_lines(text.first, [pairs[0][0]])
    write_lines(options.out / "reference.txt", [reference for _, reference in pairs])
    return text


def main() -> None:
    options = parse()
    text = chosen_text(options)
    lines = lines_of(text.whole)
    settings = [
        Setting(options.model, precision, options.device, options.threads, options.our_batch)
        for precision in options.precision
    ]
    found: dict[str, Any] = {"machine": machine()}
    if "speed" in options.section:
        found["speed"] = speed(settings, text, options)
    if "latency" in options.section:
        found["latency"] = sections.latency(settings, options.beam, lines)
    if "start" in options.section:
        found["start"] = sections.start(settings[0], options.rounds, lines[0])
    if "floor" in options.section:
        found["floor"] = sections.floor(settings, lines)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    report(found, options)


if __name__ == "__main__":
    main()
