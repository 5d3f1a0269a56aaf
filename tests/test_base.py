"""One denoising network and its views: who trains, who is on, and what is shared."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from flashdmd_cli.families.base import Base, View
from flashdmd_cli.families.conditioning import Conditioning
from flashdmd_cli.families.sdxl.family import SDXLFamily
from flashdmd_cli.families.unet import LORA_TARGETS
from flashdmd_cli.training.roles import assign

from .conftest import tiny_unet

PROMPTS = ["a plain red circle above a striped blue ring", "a dotted green square"]


@pytest.fixture
def base(tiny_family: SDXLFamily) -> Base:
    return tiny_family.base.twin()


@pytest.fixture(scope="module")
def cond(tiny_family: SDXLFamily) -> Conditioning:
    return tiny_family.encode(PROMPTS)


def noisy(seed: int = 3) -> tuple[Tensor, Tensor]:
    """x_t and t of two rows."""
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed)), torch.tensor([249.0, 749.0])


def moved(view: View, seed: int) -> View:
    """Moves all of a view's own weights, as an optimizer would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in view.parameters:
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return view


@torch.no_grad()
def answer(view: View, cond: Conditioning) -> Tensor:
    return view.output(*noisy(), cond)


def close(a: Tensor, b: Tensor, atol: float) -> bool:
    return torch.allclose(a, b, rtol=0.0, atol=atol)


# -- adapters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("linear", [True, False])
def test_an_adapter_begins_as_the_identity_and_covers_every_target(tiny_family, linear, cond):
    torch.manual_seed(0)
    net = (
        tiny_unet()
        if linear
        else UNet2DConditionModel.from_config({**tiny_unet().config, "use_linear_projection": False})
    )
    base = Base(tiny_family, net.eval())
    before = answer(base.view(), cond)
    targets = [name for name, _ in net.named_modules() if name.endswith(tuple(f".{t}" for t in LORA_TARGETS))]
    view = base.add_adapter("one", rank=4, alpha=4)
    assert close(answer(view, cond), before, 1e-6)
    found = sorted(name.removesuffix(".lora_A.one") for name, _ in net.named_modules() if name.endswith(".lora_A.one"))
    assert found == sorted(targets) and len(view.parameters) == 2 * len(targets)
    assert any(isinstance(net.get_submodule(f"{name}.base_layer"), nn.Conv2d) for name in found) != linear


def test_only_adapters_train_and_each_its_own_weights(base, cond):
    one = base.add_adapter("one", 4, 8)
    two = base.add_adapter("two", 2, 2)
    frozen = base.add_adapter("frozen", 2, 2)
    for p in frozen.parameters:
        p.requires_grad_(False)
    three = base.add_adapter("three", 2, 2, below=("frozen",))
    own = [moved(view, seed).parameters for seed, view in enumerate((one, two, three))]
    # A later adapter freezes no earlier one, and wakes none.
    wanted = {id(p) for parameters in own for p in parameters}
    assert {id(p) for p in base.net.parameters() if p.requires_grad} == wanted
    assert len(wanted) == sum(map(len, own)) == 3 * len(frozen.parameters)
    for view, parameters in zip((one, two, three), own, strict=True):
        view.output(*noisy(), cond).square().mean().backward()
        reached = {id(p) for p in base.net.parameters() if p.grad is not None}
        assert reached == {id(p) for p in parameters} and all(p.grad.any() for p in parameters)
        base.net.zero_grad(set_to_none=True)


def test_a_view_names_its_own_weights_only(base, tiny_family):
    plain = tiny_family.teacher.weights()
    one, two = base.add_adapter("one", 4, 8), base.add_adapter("two", 4, 8, below=("one",))
    for view in (one, two):
        assert all(torch.equal(a, b) for a, b in zip(view.weights().values(), view.parameters, strict=True))
    # The same names whatever an adapter is called, so that a state fits one of another name.
    assert one.weights().keys() == two.weights().keys() and not one.weights().keys() & plain.keys()
    assert not any(".one" in name or ".two" in name for name in one.weights())
    # Adapters do not change how the network's own weights are called.
    assert base.view().weights().keys() == plain.keys() == tiny_unet().state_dict().keys()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in base.view().weights().items())
    # What `weights` gives is live.
    with torch.no_grad():
        next(iter(one.weights().values())).fill_(7.0)
    assert (one.parameters[0] == 7.0).all() and not (two.parameters[0] == 7.0).any()


def test_a_name_is_given_once(base):
    view = base.add_adapter("one", 2, 2)
    before = [p.clone() for p in view.parameters]
    with pytest.raises(ValueError, match="one already"):
        base.add_adapter("one", 4, 4)
    assert all(torch.equal(a, b) for a, b in zip(before, view.parameters, strict=True))


# -- views ------------------------------------------------------------------------------------------------------------


def test_views_answer_as_separate_networks_would(base, tiny_family, cond):
    one, two = moved(base.add_adapter("one", 4, 8), 1), moved(base.add_adapter("two", 2, 6), 2)
    both = moved(base.add_adapter("three", 4, 8, below=("one",)), 3)
    alone = []
    for names in ((), ("one",), ("two",), ("one", "three")):
        other = tiny_family.base.copy()
        for name in names:
            rank, alpha = {"one": (4, 8), "two": (2, 6), "three": (4, 8)}[name]
            view = other.add_adapter(name, rank, alpha)
            assign(view.weights(), base.view(name).weights())
        alone.append(answer(other.view(*names), cond))
    views = (base.view(), one, two, both)
    for order in ((0, 1, 2, 3), (3, 1, 0, 2), (2, 2, 0, 3)):
        for index in order:
            assert close(answer(views[index], cond), alone[index], 1e-6)
    assert all(not close(a, b, 1e-3) for i, a in enumerate(alone) for b in alone[:i])
    # Classifier-free guidance and the conversion to x0 are those of the view as well.
    x_t, t = noisy()
    with torch.no_grad():
        c, u = (two.output(x_t, t, told) for told in (cond, tiny_family.null(cond)))
        alpha, sigma = (f(t).view(-1, 1, 1, 1) for f in (tiny_family.schedule.alpha, tiny_family.schedule.sigma))
        assert close(two.guided_x0(x_t, t, cond, 3.0), (x_t - sigma * (u + 3 * (c - u))) / alpha, 1e-4)
        assert torch.equal(two.guided_x0(x_t, t, cond, 1.0), two.x0(x_t, t, cond))


def test_entering_a_view_leaves_the_one_outside_on(base, cond):
    """Also after an error."""
    one, two = moved(base.add_adapter("one", 4, 8), 1), moved(base.add_adapter("two", 4, 8), 2)
    x_t, t = noisy()
    with torch.no_grad(), base.enter(("one",), x_t):
        expected = base.calls.call(base.net, x_t, t, cond)
        answer(two, cond)
        assert torch.equal(base.calls.call(base.net, x_t, t, cond), expected)
        with pytest.raises(RuntimeError):
            two.output(x_t[:, :3], t, cond)
        assert torch.equal(base.calls.call(base.net, x_t, t, cond), expected)
    assert torch.equal(answer(one, cond), expected)


def test_merged_networks_are_plain_and_answer_as_their_views(base, tiny_family, cond, tmp_path: Path):
    keys = base.net.state_dict().keys()
    assert base.view().merged() is base.net
    one = moved(base.add_adapter("one", 4, 8), 1)
    two = moved(base.add_adapter("two", 2, 6, below=("one",)), 2)
    before = {name: value.clone() for name, value in base.net.state_dict().items()}
    for view in (base.view(), one, two):
        merged = view.merged()
        assert merged.state_dict().keys() == keys
        assert close(answer(Base(tiny_family, merged).view(), cond), answer(view, cond), 1e-5)
        assert close(answer(view.plain(), cond), answer(view, cond), 1e-5) and view.plain().adapters == ()
    # It is a stock folder, and the base is as it was.
    tiny_family.save_network(two.merged(), tmp_path)
    assert close(answer(tiny_family.load_student(tmp_path), cond), answer(two, cond), 1e-5)
    assert all(torch.equal(value, before[name]) for name, value in base.net.state_dict().items())


def test_features_are_those_of_the_middle_block_and_skip_the_decoder_half(base, tiny_family, cond):
    one = moved(base.add_adapter("one", 4, 8), 1)
    x_t, t = noisy()
    seen: list[Tensor] = []
    ran: list[str] = []
    hooks = [base.net.mid_block.register_forward_hook(lambda *args: seen.append(args[-1]))]
    hooks += [block.register_forward_hook(lambda *_: ran.append("up")) for block in base.net.up_blocks]
    hooks += [base.net.conv_out.register_forward_hook(lambda *_: ran.append("out"))]
    for view in (base.view(), one):
        seen.clear()
        with torch.no_grad():
            whole = view.output(x_t, t, cond)
        assert whole.shape == x_t.shape and set(ran) == {"up", "out"}
        ran.clear()
        (features,) = view.features(x_t, t, cond)
        assert ran == [] and torch.equal(features, seen[0]) and features.shape[1:] == (tiny_family.tap_widths[0], 4, 4)
    assert not close(seen[0], base.view().features(x_t, t, cond)[0], 1e-3)
    # Gradient reaches the view's own weights and the noisy sample: the discriminator's way to the student.
    leaf = x_t.clone().requires_grad_()
    one.features(leaf, t, cond)[0].square().mean().backward()
    assert leaf.grad is not None and leaf.grad.any()
    assert any(p.grad is not None and p.grad.any() for p in one.parameters)
    for hook in hooks:
        hook.remove()


# -- copies and twins -------------------------------------------------------------------------------------------------


def test_a_copy_has_everything_to_itself(tiny_family):
    base = tiny_family.base.copy()  # a twin in half precision would take the shared tensors with it
    view = moved(base.add_adapter("one", 4, 8), 1)
    base.net.to(torch.float16)
    before = {name: value.clone() for name, value in base.net.state_dict().items()}
    copied = base.copy()
    assert {p.dtype for p in copied.net.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in copied.net.parameters()) and not copied.net.training
    assert not any(p.requires_grad for p in base.copy(trainable=False).net.parameters())
    # No adapters, and those of a copy are its own.
    assert copied.net.state_dict().keys() == tiny_unet().state_dict().keys()
    assert len(copied.view().parameters) == len(list(copied.net.parameters()))
    moved(copied.view(), 2)
    copied.add_adapter("one", 2, 2)
    assert all(torch.equal(value, before[name]) for name, value in base.net.state_dict().items())
    assert {p.dtype for p in view.parameters} == {torch.float16}


def test_a_twin_shares_tensors_but_not_adapters(tiny_family, cond):
    base = tiny_family.base.copy(trainable=False)
    twin = base.twin()
    assert [id(p) for p in base.net.parameters()] == [id(p) for p in twin.net.parameters()]
    moved(twin.add_adapter("one", 4, 8), 1)
    plain = answer(base.view(), cond)
    assert not any(".lora_" in name for name, _ in base.net.named_parameters())
    assert torch.equal(answer(twin.view(), cond), plain) and not close(answer(twin.view("one"), cond), plain, 1e-3)
    # Nor has a twin those that are there already.
    again = twin.twin()
    assert again.view().weights().keys() == base.view().weights().keys() == again.net.state_dict().keys()
    own = again.add_adapter("one", 4, 8)
    assert close(answer(own, cond), plain, 1e-6) and not close(answer(twin.view("one"), cond), plain, 1e-3)
    with torch.no_grad():
        next(base.net.parameters()).add_(1.0)
    assert torch.equal(answer(twin.view(), cond), answer(base.view(), cond))
    assert torch.equal(answer(again.view(), cond), answer(base.view(), cond))


# -- checkpointing ----------------------------------------------------------------------------------------------------


def gradients(view: View, cond: Conditioning, between: View | None) -> list[Tensor]:
    """Output, gradient at the input and at every own weight; `between` is asked between forward and backward."""
    x_t, t = noisy()
    x_t.requires_grad_()
    output = view.x0(x_t, t, cond)
    if between is not None:
        # Of another size, at other times, with and without gradient.
        x, times = (part[:1].clone() for part in noisy(4))
        between.x0(x.requires_grad_(), times, cond.rows(slice(1))).mean().backward()
        answer(between, cond)
        for p in between.parameters:
            p.grad = None
    output.square().mean().backward()
    assert x_t.grad is not None
    found = [output.detach(), x_t.grad, *(p.grad for p in view.parameters if p.grad is not None)]
    for p in view.parameters:
        p.grad = None
    return found


@pytest.mark.parametrize("form", ["adapters", "all weights"])
def test_checkpointing_changes_neither_answers_nor_gradients(form, tiny_family, cond):
    """Also where another view was on between forward and backward, as teacher and fake score are in the loop."""
    base = tiny_family.base.copy(trainable=form == "all weights")
    views = [base.view()]
    if form == "adapters":
        views = [moved(base.add_adapter(name, 4, 8), seed) for seed, name in enumerate(("one", "two"))]
    expected = {view: gradients(view, cond, None) for view in views}
    runs = 0

    def count(*_: object) -> None:
        nonlocal runs
        runs += 1

    assert all(layer._active_adapter is base._active for layer in base._layers)  # none of peft's methods replaced it
    hook = base.net.mid_block.attentions[0].transformer_blocks[0].register_forward_pre_hook(count)
    assert base.checkpointed() is base
    for view in views:
        for between in (None, *views, base.view() if form == "adapters" else None):
            runs = 0
            found = gradients(view, cond, between)
            assert len(found) == len(expected[view]) > 3
            for a, b in zip(found, expected[view], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
            assert runs >= 2 + 2 * (between is not None)  # so it was recomputed
    with torch.no_grad():
        runs = 0
        answer(views[0], cond)
        assert runs == 1
    hook.remove()


def test_copies_of_a_checkpointed_base_are_recomputed_by_themselves(tiny_family, cond):
    """A copy, a twin and a merged network do not switch the adapters of the base that they come from."""
    base = tiny_family.base.copy()
    view = moved(base.add_adapter("one", 4, 8), 1)
    plain = view.plain()
    plain.base.net.requires_grad_(True)
    expected = [gradients(plain, cond, None), gradients(tiny_family.base.copy().view(), cond, None)]
    base.checkpointed()
    merged = view.plain()
    merged.base.net.requires_grad_(True)
    others = [merged, base.copy().view()]
    for other, wanted in zip(others, expected, strict=True):
        for a, b in zip(gradients(other, cond, view), wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    twin = base.twin().add_adapter("two", 4, 8)
    alone = moved(tiny_family.base.twin().add_adapter("two", 4, 8), 1)
    assign(twin.weights(), alone.weights())
    for a, b in zip(gradients(twin, cond, view), gradients(alone, cond, None), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
