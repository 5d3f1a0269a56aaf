"""The loop: who is updated when, what reaches whom, and that a resumed run is the same run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from flashdmd_cli.families.base import View
from flashdmd_cli.families.sdxl.family import SDXLFamily
from flashdmd_cli.networks.sam import new_sam
from flashdmd_cli.runs.errors import NumericalError
from flashdmd_cli.runs.randomness import generator
from flashdmd_cli.runs.recipe import Recipe, load_recipe
from flashdmd_cli.runs.signals import StopFlag
from flashdmd_cli.training.distill import Watch, distill, iteration
from flashdmd_cli.training.draws import Draws
from flashdmd_cli.training.roles import MAX_BAD_UPDATES
from flashdmd_cli.training.state import State
from flashdmd_cli.training.steps import Objective

from .conftest import RandomData, repeatable

SAM_CONFIG = {
    "image_encoder": {
        "img_size": 32, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "out_chans": 8, "mlp_ratio": 2.0,
        "qkv_bias": True, "use_rel_pos": True, "window_size": 4, "global_attn_indexes": [1],
    },
    "prompt_encoder": {"mask_in_chans": 4},
    "mask_decoder": {
        "depth": 1, "num_heads": 2, "mlp_dim": 8, "num_multimask_outputs": 3, "iou_head_depth": 2,
        "iou_head_hidden_dim": 8,
    },
}  # fmt: skip
QUIET = Watch(lambda *_: None, lambda *_: None, lambda *_: None)


@pytest.fixture(scope="session")
def sam_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sam")
    torch.manual_seed(1)
    (folder / "config.json").write_text(json.dumps(SAM_CONFIG))
    save_file(new_sam(SAM_CONFIG).state_dict(), folder / "model.safetensors")
    return folder


def recipe(**sets: object) -> Recipe:
    values = {
        "train.batch": 2, "train.micro_batch": 2, "train.iterations": 4, "train.save_every": 2,
        "train.preview_every": 100, "gan.decode": "full", "dm.guidance": 2.0, "optim.lr_student": 1e-3,
        "optim.lr_fake": 1e-3, "optim.lr_discriminator": 1e-3, "optim.warmup_images": 0,
    }  # fmt: skip
    return load_recipe("sdxl-4step", flags=values | {k.replace("__", "."): v for k, v in sets.items()})


def seeing(sam: Path, r: Recipe) -> Recipe:
    """The recipe with its discriminator's encoder in the folder `sam`."""
    return r.model_copy(update={"gan": r.gan.model_copy(update={"sam": str(sam)})})


def parameters(net: View | nn.Module) -> list[nn.Parameter]:
    return net.parameters if isinstance(net, View) else list(net.parameters())


def weights(net: View | nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in parameters(net)]


def changed(before: list[Tensor], net: View | nn.Module) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(before, parameters(net), strict=True))


@pytest.mark.parametrize("ttur", [1, 2, 3])
def test_update_counters_follow_ttur(ttur, tiny_family, sam_folder, tmp_path, random_data):
    state = distill(
        seeing(sam_folder, recipe(fake__ttur=ttur, train__iterations=6)),
        tiny_family,
        random_data,
        tmp_path,
        QUIET,
        StopFlag(),
    )
    assert state.updates == {"student": 6 // ttur, "fake": 6, "discriminator": 6}


@pytest.mark.parametrize("name", ["shapes-4step", "shapes-4step-dmd2", "shapes-4step-dm-only", "shapes-4step-plus-a"])
def test_resumed_run_equals_uninterrupted_run_bit_for_bit(name, tiny_family, sam_folder, tmp_path, random_data):
    flags = {"train.batch": 2, "train.micro_batch": 1, "train.iterations": 4, "train.save_every": 2,
             "train.average_images": 20}  # fmt: skip
    whole = distill(seeing(sam_folder, load_recipe(name, flags=flags)), tiny_family, random_data, tmp_path / "a", QUIET,
                    StopFlag())  # fmt: skip
    half = flags | {"train.iterations": 2}
    distill(
        seeing(sam_folder, load_recipe(name, flags=half)), tiny_family, random_data, tmp_path / "b", QUIET, StopFlag()
    )
    rest = distill(seeing(sam_folder, load_recipe(name, flags=flags)), tiny_family, random_data, tmp_path / "b", QUIET,
                   StopFlag())  # fmt: skip
    for one, two in zip(whole.roles, rest.roles, strict=True):
        a, b = one.tensors(), two.tensors()
        assert a.keys() == b.keys()
        assert [key for key in a if not torch.equal(a[key], b[key])] == []
    assert repeatable(tmp_path / "a") == repeatable(tmp_path / "b")


def test_stop_saves_and_says_where_it_stands(tiny_family, sam_folder, tmp_path, random_data):
    stop = StopFlag()
    watch = Watch(lambda done, _: stop.request(15) if done == 3 else None, lambda *_: None, lambda *_: None)
    state = distill(seeing(sam_folder, recipe()), tiny_family, random_data, tmp_path, watch, stop)
    assert state.iteration == 3
    assert (tmp_path / "state/step-00000003/tensors.safetensors").exists()


def bound(r: Recipe, family: SDXLFamily, sam: Path) -> tuple[Objective, State]:
    return Objective(r, family, family.grid(r.grid.steps)), State.new(seeing(sam, r), family)


@pytest.mark.parametrize("form", ["full", "lora"])
@pytest.mark.parametrize("name", ["shapes-4step", "shapes-4step-dmd2", "shapes-4step-plus-a"])
def test_each_loss_reaches_its_own_role_only(name, form, tiny_family, sam_folder, random_data, monkeypatch):
    """When the student is updated, only the student holds gradients; the teacher and the decoder never do."""
    flags = {"train.batch": 2, "train.micro_batch": 2, "model.form": form, "model.lora_rank": 2,
             "train.average_images": 20}  # fmt: skip
    r = load_recipe(name, flags=flags)
    objective, state = bound(r, tiny_family, sam_folder)
    assert state.discriminator is not None
    turns: list[str] = []
    original = type(state.student).update

    def holds(net: View | nn.Module) -> bool:
        return any(p.grad is not None for p in parameters(net))

    def checked(role, factor, world):
        turns.append(role.name)
        assert holds(role.net)
        if role is state.student:
            assert not holds(state.fake.net) and not holds(state.discriminator.net)
        else:
            assert not holds(state.student.net)
        for frozen in (tiny_family.teacher, state.teacher, state.average, tiny_family.vae):
            assert not holds(frozen)
        return original(role, factor, world)

    monkeypatch.setattr(type(state.student), "update", checked)
    before = weights(tiny_family.teacher)
    iteration(r, objective, state, random_data)
    assert turns == ["student", "fake", "discriminator"]
    assert not changed(before, tiny_family.teacher) and not changed(before, state.teacher)
    # What was not the role's own to move holds no gradient after the last turn either.
    nets = (
        state.student.net,
        state.fake.net,
        state.average,
        state.teacher,
        tiny_family.teacher,
        state.discriminator.net,
    )
    assert not any(map(holds, nets))


def test_distribution_matching_only_at_high_noise_and_gan_only_at_the_last_step(
    tiny_family, sam_folder, random_data, monkeypatch
):
    r = recipe()
    objective, state = bound(r, tiny_family, sam_folder)
    calls: list[tuple[bool, int]] = []
    original = View.x0

    def spy(view, x_t, t, cond):
        if view == state.student.net:
            calls.append((torch.is_grad_enabled(), int(t[0])))
        return original(view, x_t, t, cond)

    monkeypatch.setattr(View, "x0", spy)
    with_gradient = set()
    for state.iteration in range(12):
        calls.clear()
        iteration(r, objective, state, random_data)
        graph = [t for grad, t in calls if grad]
        assert graph[1:] == [249] and graph[0] in (999, 749, 499)
        with_gradient.add(graph[0])
    assert with_gradient == {999, 749, 499}


def test_eq_11_moves_the_fake_score_towards_the_student(tiny_family, sam_folder):
    r = recipe()
    _, state = bound(r, tiny_family, sam_folder)
    with torch.no_grad():
        for p in state.student.parameters:
            p.add_(torch.randn_like(p))
    expected = [0.97 * f.detach() + 0.03 * s.detach() for f, s in
                zip(state.fake.parameters, state.student.parameters, strict=True)]  # fmt: skip
    state.follow(r)
    for f, e in zip(state.fake.parameters, expected, strict=True):
        torch.testing.assert_close(f, e)


def test_accumulated_gradient_is_the_mean_over_micro_batches(tiny_family, sam_folder, monkeypatch):
    """Two micro-batches of one give the fake score the mean of the gradients that each gives alone."""
    r = recipe(train__batch=2, train__micro_batch=1)
    # Without Eq. 11 the fake score's gradient is that of its weights before the iteration.
    r = r.model_copy(update={"fake": r.fake.model_copy(update={"ema": None})})
    objective, state = bound(r, tiny_family, sam_folder)
    grads: list[list[torch.Tensor]] = []
    original = type(state.student).update

    def spy(role, factor, world):
        grads.append([p.grad.clone() for p in role.parameters if p.grad is not None])
        return original(role, factor, world)

    monkeypatch.setattr(type(state.student), "update", spy)
    iteration(r, objective, state, RandomData())
    fake_grad = grads[1]
    single: list[list[torch.Tensor]] = []
    objective, state = bound(r, tiny_family, sam_folder)
    for row in range(2):
        batch = RandomData().batch(range(row, row + 1))
        cond = tiny_family.encode(batch.captions)
        draws = Draws(r.train.seed, 0, range(row, row + 1), torch.device("cpu"))
        index = int(torch.randint(3, (1,), generator=generator(r.train.seed, 0, 0, "grid step")))
        z = draws.normal("z", (4, 8, 8))
        x = objective.student_x0(state.student.net, objective.simulate(state.student.net, z, cond, draws, 0, index,
                                 "rollout"), index, cond).detach()  # fmt: skip
        loss = objective.fake_loss(state.fake.net, x, cond, draws)
        single.append(list(torch.autograd.grad(loss, state.fake.parameters)))
    for both, one, two in zip(fake_grad, *single, strict=True):
        torch.testing.assert_close(both, (one + two) / 2, rtol=1e-4, atol=1e-6)


def test_nonfinite_gradients_are_skipped_and_end_the_run(tiny_family, sam_folder):
    _, state = bound(recipe(), tiny_family, sam_folder)
    before = weights(state.student.net)
    for count in range(MAX_BAD_UPDATES):
        for p in state.student.parameters:
            p.grad = torch.full_like(p, float("nan"))
        if count + 1 < MAX_BAD_UPDATES:
            state.student.update()
    assert not changed(before, state.student.net) and state.student.updates == 0
    with pytest.raises(NumericalError):
        state.student.update()


def test_both_losses_of_the_last_step_share_one_forward(tiny_family, sam_folder, random_data):
    """Where the iteration draws the last step, the GAN meets the state that distribution matching met."""
    r = recipe(dm__steps="all")
    state = State.new(seeing(sam_folder, r), tiny_family)
    objective, passes = Objective(r, tiny_family, tiny_family.grid(4)), []
    state.student.net.base.net.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    indices = [
        int(torch.randint(4, (1,), generator=generator(r.train.seed, 0, number, "grid step"))) for number in range(40)
    ]
    for index, learning in ((3, 1), (0, 2)):
        passes.clear()
        iteration(r, objective, state, random_data, indices.index(index))
        assert sum(passes) == learning
