"""Training as a generator of events; it resumes by itself and never prints."""

from s2s_cli.core.trainer.loop import Trainer
from s2s_cli.core.trainer.run import check as check_run
from s2s_cli.core.trainer.start import check_start, load_start, other_tokenizers

__all__ = ["Trainer", "check_run", "check_start", "load_start", "other_tokenizers"]
