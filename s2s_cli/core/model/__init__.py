"""The networks. Modules take numbers, never a recipe; `build` alone sees both."""

from s2s_cli.core.model.build import build
from s2s_cli.core.model.exposure import Exposure
from s2s_cli.core.model.seq2seq import Seq2Seq

__all__ = ["Exposure", "Seq2Seq", "build"]
