"""Recipes: TOML files that capture an experiment."""

from s2s_cli.core.recipe.load import dump, load, override, packaged, parse, recipe_folder
from s2s_cli.core.recipe.schema import Recipe

__all__ = ["Recipe", "dump", "load", "override", "packaged", "parse", "recipe_folder"]
