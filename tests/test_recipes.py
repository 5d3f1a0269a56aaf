"""Recipes: every shipped one loads, precedence holds, and wrong keys and values are told in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.recipe import RECIPES, Recipe, dump_recipe, list_recipes, load_recipe, recipe_keys
from flashdmd_cli.runs.tables import Table


def test_all_recipes_are_found() -> None:
    assert len(list_recipes()) == 10


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_each_recipe_loads_has_its_name_and_a_comment(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert path.read_text().startswith("# ")
    assert recipe.grid.steps == int(path.stem.split("-")[1].removesuffix("step"))
    assert path.stem.startswith(recipe.teacher.removesuffix("-sdxl"))


def test_paper_values_of_sdxl_4step() -> None:
    recipe = load_recipe("sdxl-4step")
    assert (recipe.train.batch, recipe.train.iterations, recipe.fake.ttur) == (64, 1000, 1)
    assert (recipe.dm_step_indices, recipe.gan_step_indices) == ((0, 1, 2), (3,))
    assert recipe.dm.guidance == 8.0
    assert recipe.fake.ema == 0.97


def test_ablation_rows_differ_only_where_they_say() -> None:
    flash, dmd2, plus_a, plus_b, plus_abc = (
        load_recipe(f"shapes-4step{row}") for row in ("", "-dmd2", "-plus-a", "-plus-b", "-plus-abc")
    )
    assert plus_abc.model_copy(update={"name": flash.name}) == flash
    assert (plus_a.gan.kind, plus_a.gan.steps, plus_a.fake) == ("pixel", "all", dmd2.fake)
    assert (plus_b.gan, plus_b.fake) == (dmd2.gan, flash.fake)
    assert (dmd2.gan.kind, dmd2.gan.loss, dmd2.fake.ttur, dmd2.fake.ema) == ("latent", "softplus", 5, None)
    assert all(row.train == flash.train for row in (dmd2, plus_a, plus_b))


def test_step_sets() -> None:
    assert Recipe.model_validate({"grid": {"steps": 1}}).dm_step_indices == (0,)
    assert Recipe.model_validate({"gan": {"kind": "none"}}).gan_step_indices == ()
    everywhere = Recipe.model_validate({"grid": {"steps": 2}, "dm": {"steps": "all"}, "gan": {"steps": "all"}})
    assert everywhere.dm_step_indices == everywhere.gan_step_indices == (0, 1)


def test_precedence(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ntrain: {batch: 8, seed: 1, iterations: 3}\n")
    recipe = load_recipe(path, ["train.seed=2", "train.iterations=4"], {"train.iterations": 5, "train.batch": None})
    assert recipe.train.resolution == 1024  # default
    assert recipe.train.batch == 8  # file
    assert recipe.train.seed == 2  # --set
    assert recipe.train.iterations == 5  # flag


def test_base_is_merged_and_a_circle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: shapes-4step\nname: mine\ngan: {weight: 1}\n")
    recipe = load_recipe(path)
    assert (recipe.gan.weight, recipe.gan.sam) == (1.0, "embedded")
    path.write_text(f"base: {path}\n")
    with pytest.raises(UsageError, match="starts from itself"):
        load_recipe(path)


def test_set_null_turns_off() -> None:
    assert load_recipe("shapes-4step", ["fake.ema=null"]).fake.ema is None


def test_dump_is_read_back(tmp_path: Path) -> None:
    recipe = load_recipe("shapes-4step-dmd2")
    path = tmp_path / "copy.yaml"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path) == recipe


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.bach=3", "train.bach: no such recipe key; did you mean train.batch?"),
        ("ttur=2", "ttur: no such recipe key; did you mean fake.ttur?"),
        ("fake.ttur=0", "fake.ttur: input should be greater than or equal to 1, not 0"),
        ("grid.steps=0", "grid.steps: input should be 1, 2, 4 or 8, not 0"),
        ("grid.steps=3", "grid.steps: input should be 1, 2, 4 or 8, not 3"),
        ("train.batch=7", "train.batch should be a multiple of micro_batch, but 7 is not of 24"),
        ("dm.renoise_range=[5, 4]", "dm.renoise_range should be two timesteps"),
        ("gan.decode=crop", "gan.crop_px should not exceed train.resolution"),
        ("gan.weight=.nan", "gan.weight: input should be a finite number"),
        ("fake.ema=1.0", "fake.ema: input should be less than 1"),
        ("batch", "--set: 'batch' is not KEY=VALUE"),
        ("gan.weight='", "--set: not YAML"),
    ],
)
def test_wrong_settings_are_told_in_one_line(setting: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe("shapes-4step", [setting])
    assert caught.value.message.startswith(message)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert caught.value.exit_code == 2


def test_wrong_key_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("gan: {wieght: 1}\n")
    with pytest.raises(UsageError, match="gan.wieght: no such recipe key; did you mean gan.weight?"):
        load_recipe(path)
    path.write_text("- a\n")
    with pytest.raises(UsageError, match="not a table"):
        load_recipe(path)


def test_missing_recipes() -> None:
    with pytest.raises(UsageError, match="did you mean shapes-4step?"):
        load_recipe("shapes-4stp")
    with pytest.raises(InputError, match="no file nowhere/mine.yaml"):
        load_recipe("nowhere/mine.yaml")


def test_recipe_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_recipe("shapes-4step").train.batch = 3  # type: ignore[misc]


def test_every_field_has_a_docstring() -> None:
    tables = [field.annotation for field in Recipe.model_fields.values()]
    for table in (table for table in tables if isinstance(table, type) and issubclass(table, Table)):
        assert table.__doc__
        assert all(field.description for field in table.model_fields.values()), table


def test_keys_are_dotted() -> None:
    assert {"name", "grid.steps", "gan.weight", "optim.lr_fake"} <= set(recipe_keys())
    assert yaml.safe_load(dump_recipe(Recipe())).keys() == Recipe.model_fields.keys()
