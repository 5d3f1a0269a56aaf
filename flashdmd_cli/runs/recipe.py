"""Reading recipes: defaults, then a recipe file, then `--set a.b=c`, then flags; the later one wins.

The fields and their defaults are in `recipe_schema`; the shipped files in the folder `recipes`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.recipe_schema import Recipe, Table

__all__ = ["Recipe", "dump_recipe", "list_recipes", "load_recipe", "recipe_keys", "recipe_path"]

RECIPES = Path(__file__).parents[1] / "recipes"


def list_recipes() -> list[str]:
    """Names of the recipes that come with the package, sorted."""
    return sorted(path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob("*.yaml"))


def recipe_path(name: str) -> Path:
    """The file of a shipped recipe, or of one given by its path. Raises `UsageError` or `InputError`."""
    if name in list_recipes():
        return RECIPES / f"{name}.yaml"
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or "/" in name:
        if path.is_file():
            return path
        raise InputError(f"--recipe: no file {name}", hint="`flashdmd recipes list` names the shipped ones")
    raise UsageError(
        f"--recipe: no recipe {name!r}{_nearest(name, list_recipes())}",
        hint="`flashdmd recipes list` names the shipped ones; a file is given with its .yaml",
    )


def load_recipe(
    name_or_path: str | Path, sets: Sequence[str] = (), flags: Mapping[str, object] | None = None
) -> Recipe:
    """The checked recipe: defaults < the file < `sets` ("a.b=c", YAML values) < `flags` ({"a.b": value}, None skipped).

    A file may start from another recipe with `base: NAME` and say only what differs. Raises `UsageError` for a wrong
    key (naming the nearest right one) or value, `InputError` for a missing or unreadable file.
    """
    values = _read(recipe_path(str(name_or_path)), ())
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set: {text!r} is not KEY=VALUE", hint="for example --set train.batch=8")
        _put(values, key.strip(), _parse(value, "--set"))
    for key, flag in (flags or {}).items():
        if flag is not None:
            _put(values, key, flag)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise _usage_error(error) from None


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every field written out; `load_recipe` reads it back."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def recipe_keys() -> list[str]:
    """Every key of a recipe, dotted as `--set` takes it."""
    keys: list[str] = []
    for name, field in Recipe.model_fields.items():
        table = field.annotation
        if isinstance(table, type) and issubclass(table, Table):
            keys += [f"{name}.{inner}" for inner in table.model_fields]
        else:
            keys.append(name)
    return keys


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The nested values of a recipe file, on top of those of its base."""
    if path in seen:
        raise UsageError(f"base: {path} starts from itself", hint="remove one `base` line of the circle")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--recipe: cannot read {path}: {error}", hint="a recipe is a YAML text file") from error
    values = _parse(text, f"--recipe: {path}")
    if not isinstance(values, dict):
        raise UsageError(f"--recipe: {path} is not a table of keys", hint="`flashdmd recipes show NAME` shows one")
    base = values.pop("base", None)
    result = _read(recipe_path(str(base)), (*seen, path)) if base is not None else {}
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] |= value
        else:
            result[key] = value
    return result


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{source}: not YAML: {' '.join(str(error).split())}", hint="check the quotes") from error


def _put(values: dict[str, Any], key: str, value: object) -> None:
    """Set a dotted key in nested values."""
    if key not in recipe_keys():
        raise _unknown(key)
    *tables, last = key.split(".")
    for table in tables:
        inner = values.get(table)
        values[table] = inner if isinstance(inner, dict) else {}
        values = values[table]
    values[last] = value


def _unknown(key: str) -> UsageError:
    return UsageError(
        f"{key}: no such recipe key{_nearest(key, recipe_keys())}",
        hint="`flashdmd recipes show sdxl-4step` shows the keys",
    )


def _nearest(word: str, words: list[str]) -> str:
    """A question naming the word that was probably meant, or nothing."""
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if not close:
        last = word.rpartition(".")[2]
        ends = difflib.get_close_matches(last, [each.rpartition(".")[2] for each in words], n=1, cutoff=0.75)
        close = [each for each in words if each.rpartition(".")[2] in ends or last in each][:1]
    return f"; did you mean {close[0]}?" if close else ""


def _usage_error(error: ValidationError) -> UsageError:
    """The first complaint of the checker, as one line that starts with the key."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
    if first["type"] == "extra_forbidden":
        return _unknown(key)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        line = f"{key}.{message}" if key else message
    else:
        line = f"{key}: {message[0].lower()}{message[1:]}, not {first['input']!r}"
    return UsageError(line, hint="`flashdmd recipes show NAME` shows right values; change it with --set or its flag")
