"""Other toolkits beside s2s in translation: which can run, and with what.

OpenNMT-py gets s2s's own weights. JoeyNMT and Marian cannot go without attention, so they bring
models of their own, trained elsewhere; fairseq's decoder feeds its output back, and is left out.
"""

import sys
from pathlib import Path
from typing import Any

from translation_onmt import source_line, write_checkpoint
from translation_processes import Command, Program, Server, Text
from translation_programs import Setting, lines_of, same_model, write_lines

from s2s_cli.core.tokenizer import SPECIAL_SYMBOLS
from s2s_cli.core.translator import first_word

ONMT = "OpenNMT-py"


def peers(setting: Setting, text: Text, options: Any) -> dict[str, Program]:
    """The toolkits that are there."""
    found: dict[str, Program] = {}
    folder = options.peers.resolve()
    python = folder / "venv-onmt/bin/python"
    if python.exists():
        found[ONMT] = onmt(setting, text, options, python)
    else:
        print(f"skipped {ONMT}: there is no {python}", file=sys.stderr)
    if options.joeynmt:
        tag = tag_of(options.joeynmt, folder, "joeynmt")
        found["JoeyNMT, attention"] = command("joeynmt", tag, text, options)
    if options.marian:
        tag = tag_of(options.marian.parent, folder, "marian")
        found["Marian, attention"] = command("marian", tag, text, options)
    return found


def onmt(setting: Setting, text: Text, options: Any, python: Path) -> Server:
    """OpenNMT-py with the model's weights, and the text as its encoder reads it."""
    folder = options.out
    model = setting.load()
    source, target = (
        tokenizer.pieces(range(len(SPECIAL_SYMBOLS), tokenizer.size))
        for tokenizer in (model.source_tokenizer, model.target_tokenizer)
    )
    first = SPECIAL_SYMBOLS[first_word(model.recipe)]
    checkpoint = folder / "onmt.pt"
    write_checkpoint(same_model(model), (source, target), first, checkpoint)

    files = []
    for file in (text.whole, text.first):
        encoded = model.source_tokenizer.encode(lines_of(file))
        read = [model.source_tokenizer.pieces(ids) for ids in encoded]
        files.append(folder / f"onmt.{file.name}")
        reverse = model.recipe.model.reverse_source
        write_lines(files[-1], [source_line(words, reverse) for words in read])
    ratio = str(model.recipe.search.max_length_ratio)
    program = Path(__file__).with_name("translation_onmt_server.py")
    asked = [str(python), str(program), str(checkpoint), str(setting.batch), ratio]
    return Server(asked, Text(*files), setting.threads, folder / "onmt.log", quiet={})


def tag_of(path: Path, folder: Path, toolkit: str) -> str:
    """What the toolkit's script calls the model that lies in this folder.

    Raises:
        SystemExit: it does not lie where the script looks for it.
    """
    found = path.resolve()
    if found.parent != folder / "runs" or not found.name.startswith(toolkit):
        raise SystemExit(f"{path} should lie in {folder}/runs and be called {toolkit}_SOMETHING")
    return found.name.removeprefix(toolkit)


def command(toolkit: str, tag: str, text: Text, options: Any) -> Command:
    """A toolkit by its script, with a model of its own."""
    script = options.peer_scripts.resolve() / f"run_{toolkit}_translate.sh"
    if not script.exists():
        raise SystemExit(f"there is no {script}; name its folder with --peer-scripts")
    variables = {
        "PEERS": str(options.peers.resolve()),
        "TAG": tag,
        "BATCH": str(options.batch),
        "THREADS": str(options.threads),
    }
    return Command(script, variables, text)
