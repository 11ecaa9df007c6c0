"""Other toolkits beside s2s: each is run by its own script, s2s before and after it.

DIR holds their environments and their text; the scripts are those that have installed them.
"""

import ast
import json
import os
import shutil
import statistics
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from training_processes import QUIET, Child, serve
from training_programs import OURS
from training_setting import setting_of

PRECISIONS = ("fp32", "bf16")
BUSY = 0.15  # cores that other processes used in a window, above which it does not count


@dataclass(frozen=True)
class Peer:
    """A toolkit's training.

    script: which runs it; folder: without which it is not installed; options: of the script;
    decoder: the kind of s2s that does the same.
    """

    script: str
    folder: str
    options: dict[str, str]
    decoder: str


ONMT = ("run_onmt_train.sh", "venv-onmt")
PEERS = {
    "onmt": Peer(*ONMT, {"ATT": "none"}, "plain"),
    "onmt-attention": Peer(*ONMT, {"ATT": "general"}, "attention"),
    "onmt-feeding": Peer(*ONMT, {"ATT": "general", "FEED": "1"}, "feeding"),
    # Feeds its last state back even without attention, which no decoder of s2s does.
    "fairseq": Peer("run_fairseq_train.sh", "venv-fairseq", {"ATT": "0"}, "plain"),
    # Has no way to go without attention.
    "joeynmt": Peer("run_joeynmt_train.sh", "venv-joeynmt", {"ATT": "luong"}, "attention"),
}


def compare_peers(options: Any) -> list[dict[str, Any]]:
    """Each toolkit that is there, with s2s directly before and after it."""
    found = []
    for name in options.peer or PEERS:
        peer = PEERS[name]
        missing = [
            path
            for path in (options.peers / peer.folder, options.peer_scripts / peer.script)
            if not path.exists()
        ]
        if missing:
            print(f"skipped {name}: there is no {missing[0]}", file=sys.stderr)
            continue
        if measured := beside(name, peer, options):
            found.append(measured)
    return found


def beside(name: str, peer: Peer, options: Any) -> dict[str, Any] | None:
    """A toolkit's words a second, and those of s2s before and after, in fp32 and bf16."""
    settings = {kind: setting_of(options, peer.decoder, kind) for kind in PRECISIONS}
    with ExitStack() as stack:
        ours, facts = {}, {}
        for kind, setting in settings.items():
            if setting is None:
                return None
            ours[kind] = stack.enter_context(Child(serve, OURS, setting))
            facts[kind] = ours[kind].answer()

        before = {kind: child.ask("go") for kind, child in ours.items()}
        theirs = run(name, peer, options)
        after = {kind: child.ask("go") for kind, child in ours.items()}
    if theirs is None:
        return None
    found = {
        kind: {
            "speed": [
                facts[kind]["target words"] / each[kind]["seconds"] for each in (before, after)
            ],
            "peak": after[kind]["peak"],
            "parameters": facts[kind]["parameters"],
        }
        for kind in PRECISIONS
    }
    return {"name": name, "decoder": peer.decoder, **theirs, "s2s": found}


def run(name: str, peer: Peer, options: Any) -> dict[str, Any] | None:
    """A toolkit's training; None where its log tells no speed."""
    folder = options.peers.resolve()
    tag = f"_training_{name}"
    environment = {key: value for key, value in os.environ.items() if key not in QUIET}
    environment |= peer.options
    environment |= {
        "PEERS": str(folder),
        "TAG": tag,
        "UPDATES": str(options.peer_updates),
        "THREADS": str(options.threads),
    }
    scripts = options.peer_scripts.resolve()
    run_name = f"training_{name}"
    command = [sys.executable, scripts / "bench.py", run_name, "--", scripts / peer.script]
    for earlier in (folder / "runs").glob(f"*{tag}/"):  # which fairseq would go on with
        shutil.rmtree(earlier)
    print(f"{name}: {options.peer_updates} updates", file=sys.stderr)
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=folder
    )
    told = subprocess.run(
        [sys.executable, scripts / "windows.py", run_name],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    # Its first line: the name, and [(words a second, cores that others used), ...].
    _, _, listed = told.stdout.partition("\n")[0].partition(" ")
    windows = ast.literal_eval(listed)[1:] if listed else []
    if not windows:
        log = folder / "runs" / f"{run_name}.log"
        print(f"{name} told no speed; its log is {log}\n{done.stderr}", file=sys.stderr)
        return None
    # The last line of `bench.py`: BENCH and an object; its memory is of all processes together.
    _, _, record = done.stdout.rpartition("BENCH ")
    quiet = [speed for speed, foreign in windows if foreign <= BUSY]
    return {
        "windows": windows,
        "record": json.loads(record),
        "quiet": len(quiet),
        "speed": statistics.median(quiet or [speed for speed, _ in windows]),
    }


def table(found: list[dict[str, Any]]) -> list[str]:
    """The toolkits as Markdown."""
    rows = [
        (
            "| toolkit | its target tokens/s | quiet windows | peak GB | s2s | precision "
            "| parameters | target tokens/s before, after | peak GB | s2s is faster, times |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in found:
        theirs = [
            each["name"],
            f"{each['speed']:,.0f}",
            f"{each['quiet']} of {len(each['windows'])}",
            f"{each['record']['rss_mb'] / 1e3:.2f}",
        ]
        for kind, ours in each["s2s"].items():
            both = ours["speed"]
            cells = [
                *(theirs if kind == PRECISIONS[0] else [""] * len(theirs)),
                each["decoder"],
                kind,
                f"{ours['parameters']:,}",
                ", ".join(f"{speed:,.0f}" for speed in both),
                f"{ours['peak'] / 1e9:.2f}",
                f"**{statistics.mean(both) / each['speed']:.2f}**",
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return rows
