"""Loading of recipes: defaults, overridden by a recipe file, then by `--set a.b=c`, then by flags.

The fields and their defaults are in `recipe_schema`, `align_schema` and `reward_schema`; the shipped files in the
folder `recipes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.nearest import nearest
from flashdmd_cli.runs.recipe_schema import Recipe
from flashdmd_cli.runs.reward_schema import RewardRecipe
from flashdmd_cli.runs.tables import Config
from flashdmd_cli.runs.yaml_text import excerpt, parse_yaml

__all__ = [
    "Recipe",
    "RewardRecipe",
    "config_of",
    "dump_recipe",
    "list_recipes",
    "load_any_recipe",
    "load_recipe",
    "load_reward_recipe",
    "recipe_keys",
    "recipe_path",
]

R = TypeVar("R", Recipe, RewardRecipe)
_PACKAGE = Path(__file__).parents[1]
RECIPES = next(
    (folder for folder in (_PACKAGE / "recipes", _PACKAGE.parent / "recipes") if folder.is_dir()), _PACKAGE / "recipes"
)
"""Folder of the shipped recipes: inside the package in a wheel, at the top level in a checkout or editable install."""


def list_recipes() -> list[str]:
    """Names of the shipped recipes, sorted."""
    return sorted(path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob("*.yaml"))


def recipe_path(name: str) -> Path:
    """The file of a shipped recipe, or of a recipe given by its path. Raises `UsageError` or `InputError`."""
    if name in list_recipes():
        return RECIPES / f"{name}.yaml"
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or "/" in name:
        if path.is_file():
            return path
        raise InputError(f"--recipe: no file {name}", hint="`flashdmd recipes list` names the shipped ones")
    raise UsageError(
        f"--recipe: no recipe {name!r}{nearest(name, list_recipes())}",
        hint="`flashdmd recipes list` names the shipped ones; a file is given with its .yaml",
    )


def load_recipe(
    name_or_path: str | Path,
    sets: Sequence[str] = (),
    flags: Mapping[str, object] | None = None,
    stage1: Recipe | None = None,
) -> Recipe:
    """The validated recipe: defaults < file < `sets` ("a.b=c", YAML values) < `flags` ({"a.b": value}, None skipped).

    A file may inherit from another recipe with `base: NAME`. `stage1`, the recipe of a checkpoint to be aligned,
    replaces all inherited files below the first with a key `align`, so that the student is regularised by the losses of
    its own distillation. Raises `UsageError` for an unknown key (naming the nearest known one) or a wrong value,
    `InputError` for a missing or unreadable file.
    """
    layers = _layers(recipe_path(str(name_or_path)), ())
    if stage1 is not None:
        lowest = next((i for i, layer in enumerate(layers) if "align" in layer), 0)
        # Device and precision of stage 1 depend on its machine, and are not inherited.
        layers = [stage1.model_dump(mode="json", exclude={"model": {"device", "precision"}}), *layers[lowest:]]
    return _check(Recipe, str(name_or_path), layers, sets, flags)


def load_reward_recipe(
    name_or_path: str | Path, sets: Sequence[str] = (), flags: Mapping[str, object] | None = None
) -> RewardRecipe:
    """The validated recipe of a reward model, with the precedence and the errors of `load_recipe`."""
    return _check(RewardRecipe, str(name_or_path), _layers(recipe_path(str(name_or_path)), ()), sets, flags)


def load_any_recipe(name_or_path: str | Path, sets: Sequence[str] = ()) -> Recipe | RewardRecipe:
    """A recipe of either kind: recipes of reward models are in a folder named `reward`."""
    is_reward = recipe_path(str(name_or_path)).parent.name == "reward"
    return (load_reward_recipe if is_reward else load_recipe)(name_or_path, sets)


def dump_recipe(recipe: Recipe | RewardRecipe) -> str:
    """The resolved recipe as YAML with every field; `load_recipe` can read it."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def recipe_keys(schema: type[Config] = Recipe) -> list[str]:
    """Every key of a recipe in dotted form, as used by `--set`."""
    keys: list[str] = []
    for name, field in schema.model_fields.items():
        inner = config_of(field.annotation)
        keys += [f"{name}.{key}" for key in inner.model_fields] if inner is not None else [name]
    return keys


def config_of(annotation: Any) -> type[Config] | None:
    """The config class of a nested field, also of an optional one; None for a plain field."""
    kinds = get_args(annotation) or (annotation,)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Config)), None)


def _check(
    schema: type[R],
    name: str,
    layers: Sequence[dict[str, Any]],
    sets: Sequence[str],
    flags: Mapping[str, object] | None,
) -> R:
    values: dict[str, Any] = {}
    for layer in layers:
        _merge(values, layer)
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set: {text!r} is not KEY=VALUE", hint="for example --set train.batch=8")
        if key.strip() not in recipe_keys(schema):
            raise _unknown(key.strip(), schema, _example(schema, name, values, key.strip()))
        _put(values, key.strip(), _parse(value, "--set"))
    for key, flag in (flags or {}).items():
        if flag is not None:
            _put(values, key, flag)
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise _usage_error(error, schema, name, values) from None


def _layers(path: Path, seen: tuple[Path, ...]) -> list[dict[str, Any]]:
    """Nested values of a recipe file and of those that it inherits from, the file itself last."""
    if path in seen:
        raise UsageError(f"base: {path} inherits from itself", hint="remove one `base` line of the circle")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--recipe: cannot read {path}: {error}", hint="a recipe is a YAML text file") from error
    values = _parse(text, f"--recipe: {path}")
    if not isinstance(values, dict):
        raise UsageError(f"--recipe: {path} is not a YAML mapping", hint="`flashdmd recipes show NAME` shows one")
    base = values.pop("base", None)
    below = _layers(recipe_path(str(base)), (*seen, path)) if base is not None else []
    return [*below, values]


def _merge(values: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Override `values` by a layer, in place, key by key within each config."""
    for key, value in layer.items():
        below = values.get(key)
        values[key] = {**(below if isinstance(below, dict) else {}), **value} if isinstance(value, dict) else value


def _parse(text: str, source: str) -> Any:
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise UsageError(f"{source}: not YAML: {error}", hint="check the quotes") from error


def _put(values: dict[str, Any], key: str, value: object) -> None:
    """Set a dotted key in nested values."""
    *parents, last = key.split(".")
    for parent in parents:
        inner = values.get(parent)
        values[parent] = inner if isinstance(inner, dict) else {}
        values = values[parent]
    values[last] = value


def _example(schema: type[Config], name: str, values: Mapping[str, Any], key: str) -> str:
    """A shipped recipe that has `key`, for hints: the one in use, or a default one with the same kind and teacher."""
    aligns = key.partition(".")[0] in ("align", "probe", "bands")
    if name in list_recipes() and (values.get("align") is not None or not aligns):
        return name
    teacher = str(values.get("teacher"))
    world = "shapes" if teacher.startswith("shapes-") else "sdxl"
    if schema is RewardRecipe:
        return f"reward/{world}"
    if aligns or values.get("align") is not None:
        return f"align/{world}"
    return next(name for name in (f"{teacher}-4step", f"{world}-4step") if name in list_recipes())


def _unknown(key: str, schema: type[Config], example: str) -> UsageError:
    return UsageError(
        f"{key}: no such recipe key{nearest(key, recipe_keys(schema))}",
        hint=f"`flashdmd recipes show {example}` shows the keys",
    )


def _usage_error(error: ValidationError, schema: type[Config], name: str, values: Mapping[str, Any]) -> UsageError:
    """The first validation error as a line that starts with the key."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
    example = _example(schema, name, values, key or first["msg"].removeprefix("Value error, "))
    if first["type"] == "extra_forbidden":
        return _unknown(key, schema, example)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        line = f"{key}.{message}" if key else message
    else:
        line = f"{key}: {message[0].lower()}{message[1:]}, not {excerpt(first['input'])}"
    return UsageError(line, hint=f"`flashdmd recipes show {example}` shows valid values; --set or its flag changes it")
