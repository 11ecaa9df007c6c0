"""The models that a person names, opened for translating."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from s2s_cli.commands.terminal import Terminal

if TYPE_CHECKING:
    from s2s_cli.core.translator import Translator


def open_translator(
    models: Sequence[str] | None,
    changes: Sequence[str],
    *,
    device: str,
    threads: int,
    precision: str,
    terminal: Terminal,
) -> "Translator":
    """A translator of these models, or of the newest run's.

    Raises:
        S2SError: there is no such model or device, or the changes are not for `[search]`.
    """
    from s2s_cli.core.checkpoint import find_model, load_model
    from s2s_cli.core.device import find_device, keep_memory, set_threads
    from s2s_cli.core.recipe import override
    from s2s_cli.core.recipe.schema import AttentionDecoder
    from s2s_cli.core.translator import Translator

    place = find_device(device)
    set_threads(threads)
    keep_memory()
    paths = [find_model(path) for path in models] if models else [find_model(None)]
    members = [load_model(path, place) for path in paths]
    if not models:
        terminal.note(f"model: {members[0].path}")
    # What needs attention makes sense where any member has it.
    attends = [one for one in members if isinstance(one.recipe.model.decoder, AttentionDecoder)]
    checked = (*attends, members[0])[0].recipe.model_copy(
        update={"search": members[0].recipe.search}
    )
    settings = override(checked, changes, "search").search
    return Translator(members, settings, precision, terminal.warn)
