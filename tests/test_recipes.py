"""Recipes: every shipped one loads, precedence holds, and wrong keys and values are told in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.recipe import (
    RECIPES,
    Recipe,
    RewardRecipe,
    config_of,
    dump_recipe,
    list_recipes,
    load_any_recipe,
    load_recipe,
    load_reward_recipe,
    recipe_keys,
)
from flashdmd_cli.runs.tables import Config


def test_all_recipes_are_found() -> None:
    assert len(list_recipes()) == 45


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_each_recipe_loads_has_its_name_and_a_comment(path: Path) -> None:
    recipe = load_any_recipe(path)
    assert recipe.name == "-".join(path.relative_to(RECIPES).with_suffix("").parts)
    assert path.read_text().startswith("# ")
    assert (path.parent.name == "align") == (getattr(recipe, "align", None) is not None)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_names_of_stage_1_say_steps_and_teacher(path: Path) -> None:
    recipe = load_recipe(path)
    assert f"{recipe.teacher.removesuffix('-sdxl')}-{recipe.grid.steps}step" in path.stem
    assert recipe.family == recipe.teacher.removeprefix("shapes-")


def test_paper_values_of_sdxl_4step() -> None:
    recipe = load_recipe("sdxl-4step")
    assert (recipe.train.batch, recipe.train.iterations, recipe.fake.ttur) == (64, 1000, 1)
    assert (recipe.dm_step_indices, recipe.gan_step_indices) == ((0, 1, 2), (3,))
    assert recipe.dm.guidance == 8.0
    assert recipe.fake.ema == 0.97


def test_values_of_sd3() -> None:
    four, eight = load_recipe("sd3-4step"), load_recipe("sd3-8step")
    assert (four.train.batch, four.train.iterations, four.fake.ttur, four.model.form) == (32, 4000, 2, "lora")
    assert (four.dm.guidance, four.fake.times, four.grid.steps) == (7.0, "logit_normal", 4)
    assert (eight.grid.steps, eight.train.iterations, eight.dm) == (8, 7000, four.dm)
    assert load_recipe("sdxl-4step").fake.times == "uniform"


def test_ablation_rows_differ_only_where_they_say() -> None:
    flash, dmd2, plus_a, plus_b, plus_abc = (
        load_recipe(f"shapes-4step{row}") for row in ("", "-dmd2", "-plus-a", "-plus-b", "-plus-abc")
    )
    assert (flash.dm.steps, plus_abc.dm.steps) == ("all", "all_but_last")
    assert plus_abc.model_copy(update={"name": flash.name, "dm": flash.dm, "fake": flash.fake}) == flash
    assert (plus_a.gan.kind, plus_a.gan.steps, plus_a.fake) == ("pixel", "all", dmd2.fake)
    assert (plus_b.gan, plus_b.fake) == (dmd2.gan, plus_abc.fake)
    assert (flash.fake.ttur, plus_abc.fake.ttur, flash.fake.ema) == (1, 2, plus_abc.fake.ema)
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
    assert recipe.train.save_every == 100  # default
    assert recipe.train.batch == 8  # file
    assert recipe.train.seed == 2  # --set
    assert recipe.train.iterations == 5  # flag


def test_base_is_merged_and_a_circle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: shapes-4step\nname: mine\ngan: {weight: 1}\n")
    recipe = load_recipe(path)
    assert (recipe.gan.weight, recipe.gan.sam) == (1.0, "embedded")
    path.write_text(f"base: {path}\n")
    with pytest.raises(UsageError, match="inherits from itself"):
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
        ("train.resolution=64", "train.resolution: no such recipe key"),
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
    with pytest.raises(UsageError, match="not a YAML mapping"):
        load_recipe(path)


def test_missing_recipes() -> None:
    with pytest.raises(UsageError, match="did you mean shapes-4step?"):
        load_recipe("shapes-4stp")
    with pytest.raises(InputError, match="no file nowhere/mine.yaml"):
        load_recipe("nowhere/mine.yaml")


def test_recipe_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_recipe("shapes-4step").train.batch = 3  # type: ignore[misc]


@pytest.mark.parametrize("schema", [Recipe, RewardRecipe])
def test_every_field_has_a_docstring(schema: type[Config]) -> None:
    tables = [table for field in schema.model_fields.values() if (table := config_of(field.annotation)) is not None]
    assert len(tables) >= 4
    for table in tables:
        assert table.__doc__
        assert all(field.description for field in table.model_fields.values()), table


# -- stage 2 ------------------------------------------------------------------------------------------------------


def test_an_alignment_goes_on_top_of_the_students_own_recipe() -> None:
    """Not on top of the recipe it names as its base: the regulariser is what the student was distilled with."""
    stage1 = load_recipe("shapes-4step", ["gan.weight=0.7", "fake.ttur=5", "train.seed=3", "train.iterations=9"])
    aligned = load_recipe("align/shapes", ["align.beta=7"], {"align.rl_ratio": 2}, stage1)
    assert (aligned.gan.weight, aligned.train.seed) == (0.7, 3)
    assert (stage1.ttur, aligned.ttur) == (5, 2)  # the fake score learns at every preference step
    assert load_recipe("align/shapes", ["fake.ttur=1"], stage1=stage1).ttur == 1
    assert aligned.align is not None
    assert (aligned.align.beta, aligned.align.rl_ratio, aligned.align.reward) == (7, 2, "embedded")
    assert aligned.train.iterations == load_recipe("align/shapes").train.iterations
    assert load_recipe("align/shapes-no-gan", stage1=stage1).gan.kind == "none"


def test_rows_of_table_4() -> None:
    """Each differs from its neighbour in what its name says."""
    rows = {row: load_recipe(f"align/sdxl-{row}").model_dump(exclude={"name"}) for row in
            ("no-gan", "1to1", "2to1", "10to1", "all-noise", "post-training")}  # fmt: skip
    five = rows["no-gan"]
    assert (five["align"]["rl_ratio"], five["gan"]["kind"], five["train"]["iterations"]) == (5, "none", 2000)
    for row, ratio in (("1to1", 1), ("2to1", 2), ("10to1", 10), ("post-training", None)):
        assert rows[row] == five | {"align": five["align"] | {"rl_ratio": ratio}}
    assert rows["all-noise"] == five | {"align": five["align"] | {"steps": "all_noise"}}
    final = load_recipe("align/sdxl")
    assert (final.gan.kind, final.train.iterations, final.preference_step_indices) == ("pixel", 5000, (0, 1))


def test_which_steps_an_alignment_compares() -> None:
    four, eight = {"align": {}}, {"align": {}, "grid": {"steps": 8}}
    every = {"align": {"steps": "all_noise"}}
    assert Recipe.model_validate(four).preference_step_indices == (0, 1)
    assert Recipe.model_validate(eight).preference_step_indices == (0, 1)
    assert Recipe.model_validate(four | every).preference_step_indices == (0, 1, 2)
    assert Recipe.model_validate({"align": {}, "grid": {"steps": 2}}).preference_step_indices == (0,)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("align.bta=3", "align.bta: no such recipe key; did you mean align.beta?"),
        ("align.candidates=1", "align.candidates: input should be greater than or equal to 2"),
        ("align.threshold=[0.6, 0.4]", "align.threshold should not fall with noise"),
        ("align.threshold=[0.6, 1.4]", "align.threshold"),
        ("grid.steps=1", "grid.steps should be 2, 4 or 8"),
        ("bands.saturation=0", "bands.saturation: input should be greater than 0"),
    ],
)
def test_wrong_alignments_are_told_in_one_line(setting: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe("align/shapes", [setting])
    assert caught.value.message.startswith(message)


def test_probes_that_would_do_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="probe.every is for an alignment"):
        load_recipe("shapes-4step", ["probe.every=5"])
    with pytest.raises(UsageError, match="probe.stop_on_collapse needs a probe"):
        load_recipe("align/shapes", ["probe.every=null", "probe.stop_on_collapse=true"])


def test_reward_recipes_have_keys_of_their_own() -> None:
    assert load_reward_recipe("reward/sdxl").pairs.timesteps == tuple(range(1, 952, 50))
    assert load_reward_recipe("reward/shapes", ["pairs.held_out=0.2"]).pairs.held_out == 0.2
    with pytest.raises(UsageError, match="optim.lr_student: no such recipe key; did you mean optim.lr?"):
        load_reward_recipe("reward/shapes", ["optim.lr_student=1"])


def test_keys_are_dotted() -> None:
    assert {"name", "grid.steps", "gan.weight", "optim.lr_fake"} <= set(recipe_keys())
    assert yaml.safe_load(dump_recipe(Recipe())).keys() == Recipe.model_fields.keys()


@pytest.mark.parametrize(
    ("name", "setting", "shown"),
    [
        ("shapes-4step-dmd2", "train.bach=3", "shapes-4step-dmd2"),
        ("shapes-4step", "grid.steps=3", "shapes-4step"),
        ("shapes-4step", "align.bta=1", "align/shapes"),
        ("sdxl-4step", "align.bta=1", "align/sdxl"),
        ("align/shapes-2to1", "align.bta=1", "align/shapes-2to1"),
    ],
)
def test_the_hint_shows_a_recipe_like_the_one_in_use(name: str, setting: str, shown: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(name, [setting])
    assert f"recipes show {shown}`" in caught.value.hint
    own = tmp_path / "own.yaml"
    own.write_text(f"base: {name}\n")
    with pytest.raises(UsageError) as caught:
        load_recipe(own, [setting])
    world = "shapes" if "shapes" in name else "sdxl"
    assert f"recipes show {f'align/{world}' if 'align' in shown else f'{world}-4step'}`" in caught.value.hint


def test_the_hint_for_a_reward_recipe() -> None:
    with pytest.raises(UsageError) as caught:
        load_reward_recipe("reward/shapes", ["optim.rl=1"])
    assert "recipes show reward/shapes`" in caught.value.hint
