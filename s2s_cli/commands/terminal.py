"""What a command says to a person: on stderr, because stdout carries data only."""

import os
import time
from typing import Literal

from rich.console import Console
from rich.text import Text


class Terminal:
    """Messages on stderr; rich's Console decides about colour and width by itself."""

    def __init__(self, quiet: bool = False, verbose: bool = False) -> None:
        # Left to itself, rich would still write bold and dim with NO_COLOR.
        colors: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
        self.console = Console(stderr=True, highlight=False, soft_wrap=True, color_system=colors)
        self.quiet = quiet
        self.verbose = verbose and not quiet
        self._stage = ""
        self._said = 0.0

    def note(self, message: str) -> None:
        """Tells what is going on; silent with --quiet."""
        if not self.quiet:
            self.console.print(Text(message))

    def detail(self, message: str) -> None:
        """Tells what only --verbose asks for."""
        if self.verbose:
            self.console.print(Text(message, style="dim"))

    def warn(self, message: str) -> None:
        """Tells what a person should look at, whatever the verbosity."""
        self.console.print(Text.assemble(("warning: ", "bold yellow"), message))

    def error(self, message: str) -> None:
        """Tells why the command ends."""
        self.console.print(Text.assemble(("error: ", "bold red"), message))

    def stage(self, name: str, pairs: int) -> None:
        """Tells of a new stage of preparing at once, and how far it is every ten seconds."""
        now = time.monotonic()
        if name != self._stage:
            self.note(f"{name} ...")
        elif now - self._said < 10:
            return
        else:
            self.note(f"{name}: {pairs:,} pairs")
        self._stage, self._said = name, now
