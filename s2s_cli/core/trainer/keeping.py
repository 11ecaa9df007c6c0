"""The best few models of a run, kept for `s2s average`."""

from collections.abc import Callable
from pathlib import Path

from s2s_cli.core.checkpoint import KEPT
from s2s_cli.core.recipe.schema import Selection
from s2s_cli.core.trainer.run import Place
from s2s_cli.core.trainer.validation import higher_is_better


def keep(
    folder: Path,
    place: Place,
    value: float,
    select: Selection,
    count: int,
    save: Callable[[str], None],
) -> None:
    """Keeps the model of this update where it is among the best `count`, and drops the others.

    Args:
        folder: the run's.
        place: its `kept` is brought up to date.
        value: of the measure `select`, just measured.
        select: what the best model is best at.
        count: models to keep.
        save: writes the model to a file of that name in the run's folder.
    """
    if not count:
        return
    place.kept = [each for each in place.kept if (folder / _name(each[1])).exists()]
    higher = higher_is_better(select)
    # Of equals the oldest goes first, which is the run's best then.
    ranked = sorted(
        [*place.kept, (value, place.update)], key=lambda each: -each[0] if higher else each[0]
    )
    place.kept = ranked[:count]
    names = {_name(update) for _, update in place.kept}
    new = _name(place.update)
    if new in names:
        (folder / KEPT).mkdir(exist_ok=True)
        save(new)
    # Also those of updates that a kill has undone.
    for file in (folder / KEPT).glob("*.safetensors"):
        if f"{KEPT}/{file.name}" not in names:
            file.unlink()


def _name(update: int) -> str:
    return f"{KEPT}/update-{update:08}.safetensors"
