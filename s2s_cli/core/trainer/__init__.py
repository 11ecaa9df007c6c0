"""Training as a generator of events; it resumes by itself and never prints."""

from s2s_cli.core.trainer.loop import Trainer

__all__ = ["Trainer"]
