"""OpenNMT-py 3.5.1 as a server, in its own environment, where there is no s2s.

    VENV/bin/python benchmarks/translation_onmt_server.py MODEL BATCH RATIO

Its options are those of `onmt_translate`; only the limit of a translation's length is s2s's ratio,
of the longest source of a batch.
"""

import codecs
import sys
from typing import Any

from onmt.bin.translate import _get_parser
from onmt.inference_engine import InferenceEnginePY
from onmt.utils.parse import ArgumentParser
from translation_server import Translate, host_peak, serve

NO_LIMIT = 1000  # words of a translation, beside the ratio


def engine(model: str, batch: int, ratio: float) -> Any:
    """What `onmt_translate` makes before it translates."""
    asked = {
        "model": model,
        "src": "/dev/null",
        "output": "/dev/null",
        "batch_size": batch,
        "batch_type": "sents",
        "max_length": NO_LIMIT,
        "max_length_ratio": ratio,
        "gpu": -1,
    }
    options = _get_parser().parse_args(
        [text for name, value in asked.items() for text in (f"-{name}", str(value))]
    )
    ArgumentParser.validate_translate_opts(options)
    ArgumentParser._get_all_transform_translate(options)
    ArgumentParser._validate_transforms_opts(options)
    ArgumentParser.validate_translate_opts_dynamic(options)
    return InferenceEnginePY(options)


def translator(model: str, batch: int, ratio: float) -> Translate:
    """`onmt_translate` on one file after another."""
    made = engine(model, batch, ratio)

    def translate(source: str, output: str, beam: int) -> None:
        made.opt.src, made.opt.beam_size = source, beam
        made.translator.beam_size = beam
        with codecs.open(output, "w+", "utf-8") as file:
            made.translator.out_file = file
            made.infer_file()

    return translate


if __name__ == "__main__":
    serve(translator(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])), host_peak)
