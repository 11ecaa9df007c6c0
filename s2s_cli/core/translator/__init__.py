"""From raw text to raw text: what `s2s translate` and `s2s score` do, for Python."""

from s2s_cli.core.translator.translation import LINE_BREAKS, Pieces, Scored, Translation
from s2s_cli.core.translator.translator import Translator, first_word

__all__ = ["LINE_BREAKS", "Pieces", "Scored", "Translation", "Translator", "first_word"]
