"""What every table of a recipe is, and the types that keys share."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


@dataclass(frozen=True)
class PathKey:
    """Marks a string as a path: a relative one is read from the folder of the recipe's file.

    With `or_name` only what begins with `.`, `/` or `~` is a path; anything else is a name.
    """

    or_name: bool = False


FilePath = Annotated[str, PathKey()]
PathOrName = Annotated[str, PathKey(or_name=True)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]


class Table(BaseModel):
    """A table of a recipe: immutable, strictly typed, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
