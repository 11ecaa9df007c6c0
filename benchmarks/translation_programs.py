"""s2s and the straightforward program as servers, with the weights of one model of s2s.

python benchmarks/translation_programs.py PROGRAM SETTING
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from straightforward import Plain, Sizes
from straightforward_search import translate as search
from training_programs import OURS, THEIRS, peak_memory, their_name
from translation_server import Translate, serve

from s2s_cli.commands.translate import LARGEST_GROUP
from s2s_cli.core.checkpoint import ModelFile, find_model, load_model
from s2s_cli.core.device import find_device, keep_memory, set_threads
from s2s_cli.core.recipe import override
from s2s_cli.core.recipe.schema import Words
from s2s_cli.core.search import sentences_together
from s2s_cli.core.tokenizer import EOS
from s2s_cli.core.translator import Translator, first_word


@dataclass(frozen=True)
class Setting:
    """All that a program needs to know; it goes to another process.

    model: a file of s2s; precision: of s2s; batch: sentences.
    """

    model: str
    precision: str
    device: str
    threads: int
    batch: int

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(**json.loads(text))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def load(self) -> ModelFile:
        """The model, on the device."""
        return load_model(find_model(self.model), find_device(self.device))


def lines_of(file: str | Path) -> list[str]:
    """The lines of a text, without what ends them."""
    return Path(file).read_text(encoding="utf-8").removesuffix("\n").split("\n")


def write_lines(file: str | Path, lines: list[str]) -> None:
    """A text of these lines."""
    Path(file).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


# --- s2s -------------------------------------------------------------------------------------


def search_options(beam: int, batch: int) -> list[str]:
    """What all programs are asked for; the rest is the recipe's."""
    return [
        f"search.beam_size={beam}",
        f"search.batch_size={batch}",
        "search.length_penalty=0.0",
    ]


def ours(setting: Setting) -> Translate:
    """As `s2s translate` does it with a file, group after group."""
    keep_memory()
    model = setting.load()
    translator = Translator([model], None, setting.precision)

    def translate(source: str, output: str, beam: int) -> None:
        changes = search_options(beam, setting.batch)
        translator.settings = override(model.recipe, changes, "search").search
        lines, size = lines_of(source), sentences_together(translator.settings)
        with open(output, "w", encoding="utf-8") as file:
            first = 0
            while first < len(lines):
                group = lines[first : first + size]
                for best in translator.n_best(group, 1, first + 1, scores=False):
                    file.write(best[0].text + "\n")
                file.flush()
                first, size = first + size, min(2 * size, LARGEST_GROUP)

    return translate


# --- the straightforward program -------------------------------------------------------------


def same_model(model: ModelFile) -> Plain:
    """torch's own modules with the weights of a model of s2s, in evaluation mode.

    Raises:
        SystemExit: it is another network, or its text is not pre-segmented.
    """
    recipe = model.recipe
    encoder, decoder = recipe.model.encoder, recipe.model.decoder
    if decoder.kind != "plain" or decoder.bridge != "copy" or encoder.cell != "lstm":
        raise SystemExit(f"{model.path} is no encoder-decoder of LSTMs without attention")
    if not all(isinstance(side, Words) and side.pretokenizer != "moses" for side in sides(model)):
        raise SystemExit(f"{model.path} has to read pre-segmented text: [tokenizer] words")
    sizes = Sizes(
        model.source_tokenizer.size,
        model.target_tokenizer.size,
        layers=decoder.layers,
        embedding=decoder.embedding,
        hidden=decoder.hidden,
        features=decoder.hidden,
        dropout=0.0,
    )
    weights = {their_name(name): value for name, value in model.model.state_dict().items()}
    plain = Plain(sizes)
    try:
        plain.load_state_dict(weights)
    except RuntimeError as error:
        raise SystemExit(f"{model.path} is another network: {error}") from None
    return plain.to(model.model.device).eval()


def sides(model: ModelFile) -> tuple[Any, Any]:
    """The recipe's tokenizers of both sides."""
    return model.recipe.tokenizer.sides


def theirs(setting: Setting) -> Translate:
    """The straightforward program."""
    model = setting.load()
    plain, recipe = same_model(model), model.recipe
    turn = -1 if recipe.model.reverse_source else 1

    def translate(source: str, output: str, beam: int) -> None:
        encoded = model.source_tokenizer.encode(lines_of(source))
        found = search(
            plain,
            [[*ids[::turn], EOS] for ids in encoded],
            beam=beam,
            batch_size=setting.batch,
            first_word=first_word(recipe),
            longest=recipe.search.max_length_ratio,
        )
        write_lines(output, model.target_tokenizer.decode(list(found)))

    return translate


PROGRAMS = {OURS: ours, THEIRS: theirs}


def main() -> None:
    program, setting = sys.argv[1], Setting.from_json(sys.argv[2])
    set_threads(setting.threads)
    torch.manual_seed(0)
    device = find_device(setting.device)
    serve(PROGRAMS[program](setting), lambda: peak_memory(device))


if __name__ == "__main__":
    main()
