"""Prepared corpora: text made into packed, memory-mapped ids once, with a report on the data."""

from s2s_cli.core.prepared.packed import PackedPairs, PackedText, Prepared, open_prepared
from s2s_cli.core.prepared.preparation import Notify, Tokenizers, fingerprint, prepare, report

__all__ = [
    "Notify",
    "PackedPairs",
    "PackedText",
    "Prepared",
    "Tokenizers",
    "fingerprint",
    "open_prepared",
    "prepare",
    "report",
]
