"""Text from outside: lines and pairs, as they are in files, pipes and hub data sets."""

from s2s_cli.core.corpus.lines import Invalid, LineGroups, read_lines
from s2s_cli.core.corpus.pairs import Pair, contents, is_blank, read_pairs

__all__ = ["Invalid", "LineGroups", "Pair", "contents", "is_blank", "read_lines", "read_pairs"]
