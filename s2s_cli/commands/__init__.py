"""One file a command: parse, call core, print. The only place with typer and rich.

Core is imported inside the functions, so that `s2s --help` and a mistyped option answer at once.
"""
