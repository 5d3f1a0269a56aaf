"""Each preset on tiny repositories of the same layout: files, timesteps, guidance, LoRA, and what can go wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants as constants
import pytest
import torch
from diffusers import EulerDiscreteScheduler, LCMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from flashdmd_cli.core.grid import vp_grid
from flashdmd_cli.evaluation.baselines import loading
from flashdmd_cli.evaluation.baselines.draw import draw
from flashdmd_cli.evaluation.baselines.preset import PIPELINES, Preset, list_presets, read_preset
from flashdmd_cli.evaluation.baselines.shifted import ShiftedLCMScheduler
from flashdmd_cli.evaluation.generate import NoiseKey, generate, picture_noise
from flashdmd_cli.runs.errors import InputError, NumericalError, UsageError
from flashdmd_cli.runs.reporter import SilentReporter
from flashdmd_cli.workflows.inputs import presets
from flashdmd_cli.workflows.inputs.drawers import find_model
from flashdmd_cli.workflows.inputs.presets import PresetDrawer

from .baseline_repos import ALPHA, RANK, SD3, SDXL, another_unet, build_repositories, kohya, lora_pairs, peft
from .conftest import tiny_unet
from .fake_hub import FakeHub, serving
from .test_cli import fails, run, shipped, world  # noqa: F401
from .test_distill import sam_folder  # noqa: F401

PROMPTS = ["a red ring", "a blue square", "a striped red ring above a plain blue square"]
FEW = [999, 749, 499, 249]
EIGHT = [999, 874, 749, 624, 499, 374, 249, 124]
FLOW = [1000 * 3 * s / (1 + 2 * s) for s in torch.linspace(1, 0.003 / 1.002, 28, dtype=torch.float64).tolist()]
TIMESTEPS: dict[str, list[float]] = {
    "sdxl": list(range(981, 0, -20)),
    "lcm-sdxl-4step": [999, 759, 499, 259],
    "lcm-sdxl-8step": [999, 879, 759, 639, 499, 379, 259, 139],
    "sdxl-lightning-4step": FEW,
    "sdxl-lightning-8step": EIGHT,
    "sdxl-turbo-4step": FEW,
    "nitrosd-realism-4step": [249, 187, 124, 62],
    "nitrosd-vibrant-4step": [499, 374, 249, 124],
    "hyper-sdxl-4step": FEW,
    "hyper-sdxl-8step": EIGHT,
    "dmd2-sdxl-4step": FEW,
    "pso-dmd2-4step": FEW,
    "lpo-sdxl": list(range(951, 0, -50)),
    "sd3-medium": FLOW,
    "sd3-flash-4step": [1000, 857.693, 602.150, 8.929],
}
"""As the denoiser sees them, from the model cards and the papers."""
GUIDED = {"sdxl": 2, "lpo-sdxl": 2, "sd3-medium": 2}
"""Evaluations per step where it is not one."""


@pytest.fixture(scope="module")
def hub(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    """A hub with all repositories, whose cache the tests of this file share."""
    root = tmp_path_factory.mktemp("baselines")
    with pytest.MonkeyPatch.context() as patch, serving(FakeHub(build_repositories(root, tiny_folder))) as served:
        for name, value in {
            "ENDPOINT": served.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": served.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(root / "cache"), "HF_ASSETS_CACHE": str(root / "assets"),
            "HF_HUB_DISABLE_XET": True, "HF_HUB_OFFLINE": False,
        }.items():  # fmt: skip
            patch.setattr(constants, name, value)
        yield served


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped presets draw 32 pixels, which is the size of the tiny networks; nothing else of them changes."""

    def read(name: str) -> Preset:
        preset = read_preset(name)
        return preset.model_copy(update={"size": 32}) if name in list_presets() else preset

    monkeypatch.setattr("flashdmd_cli.evaluation.baselines.preset.read_preset", read)


@pytest.fixture
def empty_cache(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def preset_drawer(name: str) -> PresetDrawer:
    drawer = find_model(model=name).load()
    assert isinstance(drawer, PresetDrawer)
    return drawer


def seen_by(drawer: PresetDrawer, num: int = 1) -> tuple[torch.Tensor, list[float], int]:
    """`num` pictures, the timesteps at which the denoiser was evaluated, and the rows of each evaluation."""
    times: list[float] = []
    rows: set[int] = set()

    def note(net: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x, t = (kwargs["hidden_states"], kwargs["timestep"]) if "timestep" in kwargs else args[:2]
        times.append(float(t.flatten()[0]))
        rows.add(len(x))

    hook = getattr(drawer.pipeline, drawer.preset.part).register_forward_pre_hook(note, with_kwargs=True)
    try:
        return drawer.draw(PROMPTS[:num], 0), times, rows.pop()
    finally:
        hook.remove()


# -- every preset -----------------------------------------------------------------------------------------------------


def test_each_baseline_of_the_papers_tables_has_a_preset() -> None:
    assert set(list_presets()) == TIMESTEPS.keys()
    rows = {(table, row) for name in list_presets() for table, row in read_preset(name).published.items()}
    assert rows == {
        (1, "SDXL"), (1, "LCM-SDXL"), (1, "SDXL-Lightning"), (1, "SDXL-Turbo"), (1, "NitroSD-Realism"),
        (1, "NitroSD-Vibrant"), (1, "DMD2-SDXL"), (2, "SD3-Medium"), (2, "SD3-Flash"), (3, "Hyper-SDXL"),
        (3, "PSO-DMD2"), (3, "LPO-SDXL"), (6, "SDXL"), (6, "LCM-SDXL"), (6, "SDXL-Lightning"), (6, "Hyper-SD"),
        (7, "Hyper-SDXL"), (7, "LPO-SDXL"),
    }  # fmt: skip
    for name in list_presets():
        preset = read_preset(name)
        assert preset.name == name and preset.sources and preset.notes and preset.licence


@pytest.mark.parametrize("name", TIMESTEPS)
def test_preset(name: str, hub: FakeHub) -> None:
    drawer = preset_drawer(name)
    pictures, times, rows = seen_by(drawer)
    assert times == pytest.approx(TIMESTEPS[name], abs=2e-3) and rows == GUIDED.get(name, 1)
    assert pictures.shape == (1, 3, 32, 32) and pictures.abs().max() <= 1 and pictures.std() > 0
    # The noise of a picture does not depend on the batch, nor on where a list is cut.
    whole = draw(drawer.pipeline, drawer.preset, PROMPTS, 0, batch=3)
    single = draw(drawer.pipeline, drawer.preset, PROMPTS, 0, batch=1)
    # Rounding depends on it, and random networks amplify that over 20 steps with guidance.
    for one, other in (whole, single), (drawer.draw_from(0, PROMPTS[1:], 1), whole[1:]), (pictures[0], whole[0]):
        assert (one - other).abs().mean() < 1e-3
    assert (whole[0] - drawer.draw(PROMPTS[:1], 1)[0]).abs().mean() > 0.01
    keys = [NoiseKey(3, purpose="suite/a"), NoiseKey(3, purpose="suite/b")]
    named = drawer.draw_from(0, PROMPTS[:2], 0, keys=keys)
    assert (named[1] - drawer.draw_from(5, PROMPTS[1:2], 7, keys=keys[1:], batch=1)[0]).abs().mean() < 1e-3
    assert (named[0] - whole[0]).abs().mean() > 0.01
    # What the preset adds to its base is really there: without it the same scheduler draws another picture.
    changed = drawer.preset.denoiser, drawer.preset.lora
    if changed != (None, None):
        files, _ = presets.find_files(drawer.preset.model_copy(update={"denoiser": None}), name, SilentReporter())
        plain = loading.load_pipeline(
            drawer.preset.model_copy(update={"denoiser": None, "lora": None}), loading.Files(files.base)
        )
        assert (draw(plain, drawer.preset, PROMPTS[:1], 0)[0] - pictures[0]).abs().mean() > 5e-3
    for network in (drawer.preset.part, *drawer.preset.networks):
        parameters = list(getattr(drawer.pipeline, network).parameters())
        assert all(p.dtype == torch.float32 and not p.requires_grad for p in parameters)
        assert not any("lora" in n for n, _ in getattr(drawer.pipeline, network).named_parameters())


def test_encoders_have_the_weights_of_their_files(hub: FakeHub, tiny_folder: Path) -> None:
    """Names of tensors have changed between versions of transformers; a sharded T5 in float16 is read whole."""
    pipeline = preset_drawer("sdxl").pipeline
    for part in ("text_encoder", "text_encoder_2"):
        expected, loaded = load_file(tiny_folder / part / "model.safetensors"), getattr(pipeline, part).state_dict()
        assert expected and expected.keys() <= loaded.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(loaded[name], tensor.half().float(), msg=name)
    shards = sorted((hub.repos[SD3] / "text_encoder_3").glob("model.fp16-*.safetensors"))
    loaded = preset_drawer("sd3-medium").pipeline.text_encoder_3.state_dict()
    assert len(shards) > 1
    for name, tensor in [item for shard in shards for item in load_file(shard).items()]:
        torch.testing.assert_close(loaded[name], tensor.float(), msg=name)


# -- against the authors' own lines, and this package's student -------------------------------------------------------


def base_pipeline(hub: FakeHub, **given: Any) -> Any:
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        hub.repos[SDXL], variant="fp16", add_watermarker=False, **given
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(torch.float32)


def drawn(pipeline: Any, **options: Any) -> torch.Tensor:
    noise = torch.stack([picture_noise((4, 8, 8), 0, index) for index in range(2)])
    return pipeline(PROMPTS[:2], latents=noise, height=32, width=32, output_type="pt", **options).images * 2 - 1


def test_lightning_as_on_its_card(hub: FakeHub) -> None:
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(hub.repos[SDXL], subfolder="unet"))
    unet.load_state_dict(load_file(hub.repos["ByteDance/SDXL-Lightning"] / "sdxl_lightning_4step_unet.safetensors"))
    pipeline = base_pipeline(hub, unet=unet)
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    expected = drawn(pipeline, num_inference_steps=4, guidance_scale=0)
    torch.testing.assert_close(preset_drawer("sdxl-lightning-4step").draw(PROMPTS[:2], 0), expected, atol=1e-4, rtol=0)


def test_hyper_as_on_its_card(hub: FakeHub) -> None:
    from diffusers import DDIMScheduler

    pipeline = base_pipeline(hub)
    pipeline.load_lora_weights(str(hub.repos["ByteDance/Hyper-SD"] / "Hyper-SDXL-4steps-lora.safetensors"))
    pipeline.fuse_lora()
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    expected = drawn(pipeline, num_inference_steps=4, guidance_scale=0)
    torch.testing.assert_close(preset_drawer("hyper-sdxl-4step").draw(PROMPTS[:2], 0), expected, atol=1e-4, rtol=0)


def test_stock_diffusers_draws_as_this_package_from_the_same_noise(tiny_family, tmp_path: Path) -> None:
    """A student that is sampled by the family and, exported, by a preset: initial noise and all later noise agree."""
    tiny_family.save_pipeline(tiny_family.teacher.base.net, tmp_path / "student", vp_grid(4))
    (tmp_path / "own.yaml").write_text(
        "about: an exported student\nbase: student\nsteps: 4\nguidance: 1\nsize: 32\nlicence: Apache-2.0\n"
    )
    expected = generate(tiny_family, tiny_family.teacher, PROMPTS, 7, steps=4)
    drawer = preset_drawer(str(tmp_path / "own.yaml"))
    torch.testing.assert_close(drawer.draw(PROMPTS, 7), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("shift", [250, 500, 1000])
def test_the_shifted_scheduler(shift: int) -> None:
    """NitroFusion's card: x0 from the noise level of the shifted time, new noise at the level of the grid."""
    ours, stock = ShiftedLCMScheduler(original_inference_steps=4), LCMScheduler(original_inference_steps=4)
    ours.shift = shift
    ours.set_timesteps(4)
    stock.set_timesteps(4)
    assert ours.timesteps.tolist() == [t * shift // 1000 for t in FEW]
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    stock.set_begin_index(0)
    for number, t in enumerate(ours.timesteps):
        answer = torch.tanh(x) + number
        # The stock step reads its argument's noise level, and takes the next level from its own list.
        a = stock.step(answer, t, x, torch.Generator().manual_seed(number))
        b = ours.step(answer, t, x, torch.Generator().manual_seed(number))
        torch.testing.assert_close(b.prev_sample, a.prev_sample)
        torch.testing.assert_close(b.denoised, a.denoised)
        x = b.prev_sample


@pytest.mark.parametrize(("style", "alpha"), [(kohya, ALPHA), (peft, RANK)])
def test_a_lora_is_merged_by_its_formula(style: Any, alpha: float, hub: FakeHub, tmp_path: Path) -> None:
    save_file(style(tiny_unet(), 3), tmp_path / "lora.safetensors")
    lora = {"repo": str(tmp_path), "file": "lora.safetensors", "scale": 0.5}
    preset = read_preset("hyper-sdxl-4step")
    changed = Preset.model_validate({**preset.model_dump(), "lora": lora})
    files, _ = presets.find_files(changed, "x", SilentReporter())
    merged = loading.load_pipeline(changed, files).unet.state_dict()
    plain = loading.load_pipeline(preset.model_copy(update={"lora": None}), files).unet.state_dict()
    pairs = {
        f"{name}.weight": torch.einsum("or,r...->o...", b.flatten(1), a) * (0.5 * alpha / RANK)
        for name, a, b in lora_pairs(tiny_unet(), 3)
    }
    assert {tensor.dim() for tensor in pairs.values()} == {2, 4}
    for name, tensor in plain.items():
        torch.testing.assert_close(merged[name], tensor + pairs.get(name, 0), atol=1e-5, rtol=1e-5)


# -- downloads --------------------------------------------------------------------------------------------------------


def test_only_the_needed_files_are_downloaded_and_once(hub: FakeHub, empty_cache: None) -> None:
    hub.asked.clear()
    preset_drawer("dmd2-sdxl-4step")
    sent = hub.sent()
    assert "dmd2_sdxl_4step_unet_fp16.safetensors" in sent and "unet/config.json" in sent
    assert not [name for name in sent if name.endswith(".bin")]
    weights = [name for name in sent if name.endswith(".safetensors") and "/" in name]
    assert weights and all(".fp16." in name and not name.startswith("unet/") for name in weights)
    hub.asked.clear()
    preset_drawer("dmd2-sdxl-4step")
    assert hub.asked == []


def refused(name: str, *said: str) -> None:
    with pytest.raises(InputError) as caught:
        preset_drawer(name)
    line = f"{caught.value.message} ({caught.value.hint})"
    assert line.startswith(f"--model {name}: ") and "\n" not in line
    for text in said:
        assert text in line, line


def test_gated_and_missing_files(hub: FakeHub, empty_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "gated", {SD3})
    refused("sd3-medium", "come after their terms are accepted", SD3, "hf auth login")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.utils._http.constants.HF_HUB_OFFLINE", True)
    refused("sd3-flash-4step", "6.0 GB", "accept its terms", "the same command downloads them")
    refused("sdxl-lightning-4step", SDXL, "1.8 GB", "not on this machine")


def test_files_that_are_not_there_any_more(hub: FakeHub, empty_cache: None, tmp_path: Path) -> None:
    repos = dict(hub.repos)
    try:
        for name, gone in (("ZichenMiao/PSO", "SDXL_DMD2"), ("casiatao/LPO", "lpo_sdxl_merge")):
            hub.repos[name] = shutil.copytree(repos[name], tmp_path / name)
            shutil.rmtree(hub.repos[name] / gone)
        refused("pso-dmd2-4step", "ZichenMiao/PSO has no SDXL_DMD2/pytorch_lora_weights.safetensors")
        refused("lpo-sdxl", "casiatao/LPO has no lpo_sdxl_merge/unet/config.json")
        del hub.repos["ChenDY/NitroFusion"]
        refused("nitrosd-realism-4step", "knows no model ChenDY/NitroFusion")
    finally:
        hub.repos = repos


# -- a preset of one's own --------------------------------------------------------------------------------------------


def own(folder: Path, text: str = "", **values: Any) -> str:
    """A preset of one's own on the tiny SDXL, as a file."""
    base = {"about": "mine", "base": SDXL, "steps": 2, "guidance": 0, "size": 32, "licence": "mine"}
    path = folder / "own.yaml"
    path.write_text(text or json.dumps(base | values))
    return str(path)


def test_weights_that_do_not_fit(hub: FakeHub, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tensors = another_unet(1).state_dict()
    save_file({name: tensor for name, tensor in tensors.items() if name != "conv_in.bias"}, tmp_path / "u.safetensors")
    refused(own(tmp_path, denoiser={"repo": ".", "file": "u.safetensors"}), "u.safetensors", "conv_in.bias")
    (tmp_path / "u.safetensors").write_bytes(b"not safetensors")
    refused(own(tmp_path, denoiser={"repo": ".", "file": "u.safetensors"}), "cannot be loaded")
    lora = {"repo": ".", "file": "l.safetensors"}
    strange = {f"unet.down_blocks.9.{i}.lora_{side}.weight": torch.ones(2, 2) for i in "ab" for side in "AB"}
    fitting = peft(tiny_unet(), 3)
    for tensors, text in (
        (fitting | strange, f"{len(fitting) // 2} of its {len(fitting) // 2 + 2} layers fit the base"),
        (strange, "does not fit the base"),
        ({name: torch.ones(7, 9) for name in fitting}, "does not fit the base"),
    ):
        save_file(tensors, tmp_path / "l.safetensors")
        refused(own(tmp_path, lora=lora), f"l.safetensors: {text}")
        assert not [line for line in capfd.readouterr().err.splitlines() if "unsuccessful" in line]
    save_file({"a": torch.ones(1)}, tmp_path / "l.safetensors")
    refused(own(tmp_path, lora=lora), "l.safetensors: is no LoRA")
    refused(own(tmp_path, scheduler={"name": "FancyScheduler"}), "has no FancyScheduler")
    refused(own(tmp_path, base="nowhere"), "nowhere: no such folder")
    # A network without one of its tensors would otherwise be filled at random.
    folder = shutil.copytree(hub.repos[SDXL], tmp_path / "damaged")
    for path in (folder / "text_encoder_2").glob("*.fp16.safetensors"):
        path.unlink()
    path = folder / "text_encoder_2" / "model.safetensors"
    tensors = load_file(path)
    tensors.pop("text_projection.weight")
    save_file(tensors, path, metadata={"format": "pt"})
    refused(own(tmp_path, base="damaged"), "text_encoder_2/ lacks text_projection.weight")
    # NaN is an error, not a black picture.
    tensors = {name: tensor * float("nan") for name, tensor in another_unet(1).state_dict().items()}
    save_file(tensors, tmp_path / "u.safetensors")
    drawer = preset_drawer(own(tmp_path, denoiser={"repo": ".", "file": "u.safetensors"}))
    with pytest.raises(NumericalError, match="--model own: the pictures are not finite"):
        drawer.draw(PROMPTS[:1], 0)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"stepz": 4}, "stepz: no such key"),
        ({"steps": 0}, "steps: "),
        ({"timesteps": [999]}, "timesteps has 1 entries, steps is 2"),
        ({"timesteps": [999, 1], "sigmas": [1, 0.5]}, "timesteps and sigmas exclude each other"),
        ({"timestep_shift": 250}, "timestep_shift is for scheduler.name LCMScheduler"),
        ({"denoiser": {"repo": "a/b"}}, "denoiser: exactly one of file and folder"),
        ({"without": ["refiner"]}, "without: StableDiffusionXLPipeline has no refiner"),
        ({"scheduler": {"name": "os.system"}}, "scheduler.name: "),
        ({"pipeline": "StableDiffusion3Pipeline", "timesteps": [9, 1]}, "takes sigmas instead"),
    ],
)
def test_mistakes_in_a_preset(values: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read_preset(name := own(tmp_path, **values))
    assert caught.value.message.startswith(f"--model {name}: ") and said in caught.value.message
    assert "\n" not in caught.value.message


def test_files_that_are_no_presets(tmp_path: Path) -> None:
    for text in ("[1, 2", "- a\n- b\n"):
        with pytest.raises(UsageError, match="--model"):
            read_preset(own(tmp_path, text))
    with pytest.raises(UsageError, match="--model lcm: no such preset"):
        read_preset("lcm")
    with pytest.raises(InputError, match="no such file"):
        read_preset(str(tmp_path / "none.yaml"))


def test_identity_is_what_decides_the_pictures(hub: FakeHub, tmp_path: Path) -> None:
    one = preset_drawer(own(tmp_path)).identity()
    assert preset_drawer(own(tmp_path, about="other words", licence="other")).identity() == one
    assert json.loads(json.dumps(one)) == one
    changes: list[dict[str, Any]] = [
        {"steps": 3}, {"guidance": 3}, {"negative": "x"}, {"scheduler": {"name": "DDIMScheduler"}},
        {"denoiser": {"repo": "tianweiy/DMD2", "file": "dmd2_sdxl_4step_unet_fp16.safetensors"}},
        {"lora": {"repo": "ByteDance/Hyper-SD", "file": "Hyper-SDXL-4steps-lora.safetensors"}},
        {"lora": {"repo": "ByteDance/Hyper-SD", "file": "Hyper-SDXL-4steps-lora.safetensors", "scale": 0.5}},
        {"lora": {"repo": "ByteDance/Hyper-SD", "file": "Hyper-SDXL-8steps-lora.safetensors"}},
        {"base": "stabilityai/sdxl-turbo"},
    ]  # fmt: skip
    others = [preset_drawer(own(tmp_path, **change)).identity() for change in changes]
    assert len({json.dumps(each, sort_keys=True) for each in [one, *others]}) == 1 + len(changes)


def test_guidance_doubles_the_evaluations_unless_the_network_takes_it_as_an_input() -> None:
    def facts(guidance: float, **config: Any) -> dict[str, object]:
        drawer = PresetDrawer.__new__(PresetDrawer)
        unet = SimpleNamespace(config=SimpleNamespace(**config))
        preset = SimpleNamespace(name="n", base="b", licence="l", part="unet", steps=4, guidance=guidance)
        preset.model_dump = lambda **_: {}
        vars(drawer).update(preset=preset, pipeline=SimpleNamespace(unet=unet, scheduler=None))
        return drawer.facts()

    assert [facts(guidance)["nfe"] for guidance in (0, 1, 1.5, 8)] == [4, 4, 8, 8]
    assert facts(8, time_cond_proj_dim=256)["nfe"] == 4 and facts(8, time_cond_proj_dim=None)["nfe"] == 8


# -- commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sdxl-lightning-4step", "sd3-flash-4step"])
def test_sample_command(name: str, hub: FakeHub, world) -> None:  # noqa: F811
    done = run("sample", "--model", name, "--prompt", PROMPTS[0], "--num", 2, "--out", "s", "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert [Path(file).name for file in document["files"]] == ["0000.png", "0001.png", "grid.png", "prompts.json"]
    manifest = json.loads(Path("s/manifest.json").read_text())
    assert manifest["recipe"]["model"] == name and manifest["recipe"]["steps"] == 4
    assert manifest["family"] == {"sdxl-lightning-4step": "sdxl", "sd3-flash-4step": "sd3"}[name]
    assert manifest["recipe"]["preset"]["licence"] == read_preset(name).licence
    assert set(manifest["teacher"]["parts"]) >= {"vae", "text_encoder", "scheduler"}
    assert run("inspect", "s").exit_code == 0


def embedded(folder: Path) -> str:
    """A preset of one's own: the embedded teacher with the DDIM of diffusers."""
    scheduler = {"name": "DDIMScheduler", "config": {"timestep_spacing": "trailing"}}
    return own(folder, base="shapes-sdxl", guidance=2, size=64, scheduler=scheduler)


def test_stock_ddim_draws_as_this_packages(tmp_path: Path) -> None:
    ours = find_model("shapes-sdxl", sampler="ddim", steps=2, guidance=2.0).load().draw(PROMPTS, 0)
    assert (preset_drawer(embedded(tmp_path)).draw(PROMPTS, 0) - ours).abs().max() < 1e-3


def test_eval_command_with_a_preset_file(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(embedded(Path())).rename("ddim.yaml")
    suite = ["--suite", "shapes-val", "--limit", 2, "--json"]
    done = run("eval", "--model", "ddim.yaml", "--out", "e", *suite)
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert (document["model"], document["sampler"]) == ("ddim", "DDIMScheduler")
    assert len(list(Path("e", "pictures").glob("*/*.png"))) >= 2 and run("inspect", "e").exit_code == 0
    assert "is for the embedded world" in run("eval", "--model", own(tmp_path), *suite).stderr


def test_options_that_do_not_go_with_a_preset(world) -> None:  # noqa: F811
    prompt = ["--prompt", "a ring"]
    for words in (["--from", "shapes-sdxl"], ["--sampler", "ddim"], ["--steps", 3], ["--vae", "x"],
                  ["--teacher-config", "x"]):  # fmt: skip
        fails(run("sample", "--model", "sdxl", *prompt, *words), 2, f"{words[0]}: does not go with --model")
    fails(run("eval", "--model", "sdxl", "--guidance", 3), 2, "--guidance: does not go with --model")
    fails(run("sample", "--model", "sdxl", *prompt, "--compare", "teacher"), 2, "--compare teacher: sdxl is no student")


def test_list_models() -> None:
    text = run("sample", "--list-models").stdout
    assert all(any(line.startswith(name + " ") for line in text.splitlines()) for name in list_presets())
    assert "cc-by-nc-4.0" in text and run("sample", "--list-models", "-q").stdout.split() == list_presets()
    rows = json.loads(run("sample", "--list-models", "--json").stdout)
    assert {row["name"]: row["guidance"] for row in rows}["lcm-sdxl-4step"] == 8
    assert {row["pipeline"] for row in rows} == PIPELINES.keys()


# -- docs -------------------------------------------------------------------------------------------------------------


def doc_row(preset: Preset) -> str:
    """A preset's row of the table in docs/baselines.md."""
    rows = ", ".join(f"{row} ({table})" for table, row in preset.published.items())
    files = [f"`{preset.base}`"]
    for weights in filter(None, (preset.denoiser, preset.lora)):
        inside = weights.file or getattr(weights, "folder", None)
        files.append(f"`{weights.repo}`" + (f" `{inside}`" if inside != "." else ""))
    scheduler = "its own" if preset.scheduler is None else preset.scheduler.name.removesuffix("Scheduler")
    if preset.scheduler is not None and preset.scheduler.config:
        scheduler += " " + ", ".join(f"{key} {value}" for key, value in preset.scheduler.config.items())
    if preset.timestep_shift is not None:
        scheduler += f", timestep_shift {preset.timestep_shift}"
    if preset.timesteps is not None:
        scheduler += f", timesteps {', '.join(map(str, preset.timesteps))}"
    cells = (
        f"`{preset.name}`",
        rows,
        " + ".join(files),
        scheduler,
        preset.steps,
        f"{preset.guidance:g}",
        preset.licence,
    )
    return f"| {' | '.join(map(str, cells))} |"


def test_the_docs_have_the_presets_as_they_are() -> None:
    text = (Path(__file__).parents[1] / "docs" / "baselines.md").read_text(encoding="utf-8")
    table = [line for line in text.splitlines() if line.startswith("| `")]
    assert table == [doc_row(read_preset(name)) for name in list_presets()]
