"""MAE: its loss by hand, what it sees, an independent implementation, and every door that a run goes through."""

import math

import pytest
import tiny
import torch
import torch.nn.functional as F

from twinblock.config.recipes import compose
from twinblock.core.errors import InputError
from twinblock.methods.learner import Batch, Signal
from twinblock.methods.learners.mae import MAE
from twinblock.nn.tokens import patchify, unpatchify

KEY = Batch(None, (0, 3), 0)


def made(scope: str = "end_to_end", **learner) -> tuple[torch.nn.Module, list[MAE]]:
    """A ViT of 16 patches of 4 x 4 pixels, and its learners, in double precision."""
    _, encoder, learners = tiny.learners("mae", scope, {"cuts": "stages"}, learner=learner)
    return encoder, learners


def images(n: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_changed(x: torch.Tensor, patches: torch.Tensor, by: float = 5.0) -> torch.Tensor:
    """Images in which these patches, numbers for each image, are others."""
    rows = patchify(x, 4)
    rows[torch.arange(len(x))[:, None], patches] += by * torch.randn(rows[:, : patches.shape[1]].shape).double()
    return unpatchify(rows, 4)


def loss_of(learner: MAE, x: torch.Tensor, batch: Batch = KEY) -> torch.Tensor:
    return learner(Signal.from_views([x]), batch)[0]


def test_the_loss_by_hand():
    """A decoder that says 2 everywhere; patches of one value each, then patches half of 1 and half of 3."""
    _, (learner,) = made(norm_pixels=False)
    torch.nn.init.zeros_(learner.pixels.weight)
    torch.nn.init.constant_(learner.pixels.bias, 2.0)
    values = torch.arange(16.0).double()
    flat = unpatchify(values[None, :, None].expand(1, 16, 48), 4)
    _, hidden = learner.places(KEY.key, 0, 1, flat.device)
    expected = sum((value - 2) ** 2 for value in hidden[0].tolist()) / 12
    assert loss_of(learner, flat).item() == pytest.approx(expected)

    learner.norm_pixels = True
    halves = unpatchify(torch.tensor([1.0, 3.0]).double().repeat_interleave(24).expand(1, 16, 48), 4)
    variance = 48 * 1.0 / 47  # about the mean 2, as a sample's
    high = 1 / math.sqrt(variance + 1e-6)
    expected = ((high - 2) ** 2 + (-high - 2) ** 2) / 2
    assert loss_of(learner, halves).item() == pytest.approx(expected)


@pytest.mark.parametrize(("mask", "visible"), [(0.75, 4), (0.5, 8), (0.9, 1), (0.7, 4)])
def test_the_encoder_runs_on_the_visible_tokens_alone(mask, visible):
    _, (learner,) = made(mask=mask)
    seen, hidden = learner.places(KEY.key, 0, 6, torch.device("cpu"))
    assert (seen.shape[1], hidden.shape[1]) == (visible, 16 - visible)
    assert all(sorted(torch.cat(row).tolist()) == list(range(16)) for row in zip(seen, hidden, strict=True))
    lengths = []
    for step in learner._rest:
        step.register_forward_hook(lambda module, given, y: lengths.append(y.shape[1]))
    loss_of(learner, images())
    assert set(lengths) == {1 + visible} and len(lengths) == len(learner._rest)  # the class token beside them


def test_the_loss_does_not_see_visible_patches():
    """In the pixels that are compared; and the gradient of a constant decoder is none there."""
    _, (learner,) = made()
    torch.nn.init.zeros_(learner.pixels.weight)
    torch.nn.init.ones_(learner.pixels.bias)
    x = images().requires_grad_()
    seen, _ = learner.places(KEY.key, 0, len(x), x.device)
    loss = loss_of(learner, x)
    assert torch.equal(loss_of(learner, with_changed(x.detach(), seen)), loss)
    (gradient,) = torch.autograd.grad(loss, x)
    moved = patchify(gradient, 4).abs().amax(2) > 0
    assert not moved.gather(1, seen).any() and moved.sum() == 6 * 12


def test_hidden_pixels_do_not_reach_the_network():
    _, (learner,) = made()
    x = images()
    seen, hidden = learner.places(KEY.key, 0, len(x), x.device)
    other = with_changed(x, hidden)
    tokens = learner.encode(x, seen)
    assert torch.equal(learner.encode(other, seen), tokens)
    assert torch.equal(
        learner.reconstruct(learner.encode(other, seen), seen, hidden), learner.reconstruct(tokens, seen, hidden)
    )
    assert not torch.equal(learner.encode(with_changed(x, seen), seen), tokens)
    assert loss_of(learner, other) != loss_of(learner, x)


def test_masks_follow_from_seed_step_and_place():
    """As of any number of processes: each draws those of its own images."""
    _, (learner,) = made()
    cpu = torch.device("cpu")
    (seen, _), (part, _) = learner.places((0, 7), 0, 8, cpu), learner.places((0, 7), 5, 3, cpu)
    assert torch.equal(part, seen[5:])
    others = [learner.places(key, 0, 8, cpu)[0] for key in ((0, 8), (1, 7))]
    assert all(not torch.equal(other, seen) for other in others)
    assert len({tuple(row) for row in seen.sort(1).values.tolist()}) > 4  # of each image its own
    counts = torch.bincount(learner.places((0, 0), 0, 4000, cpu)[0].flatten(), minlength=16)
    assert (counts - 1000).abs().max() < 6 * (4000 * 0.25 * 0.75) ** 0.5  # each place as often


def plain_mae(encoder, learner, x, seen, hidden):
    """The publication's forward in plain torch: all tokens in their order, tokens by loops, attention written out."""
    state = {**encoder.state_dict(keep_vars=True)}
    weight = state["patch_embed.proj.weight"]
    tokens = F.conv2d(x, weight, state["patch_embed.proj.bias"], stride=4).flatten(2).transpose(1, 2)
    place = state["pos_embed"][0]
    first = state["cls_token"][0, 0] + place[0]
    h = torch.stack(
        [torch.stack([first, *(row[p] + place[1 + p] for p in own)]) for row, own in zip(tokens, seen, strict=True)]
    )
    for k in range(6):
        h = attended(h, state, f"blocks.{k}.", heads=2)
    h = F.layer_norm(h, h.shape[-1:], state["norm.weight"], state["norm.bias"], 1e-6)

    own = {name: t for name, t in learner.state_dict(keep_vars=True).items() if not name.startswith("blocks.")}
    h = F.linear(h, own["decoder.narrow.weight"], own["decoder.narrow.bias"])
    width = h.shape[-1]
    whole = []
    for i in range(len(x)):
        row = [h[i, 0]]
        for p in range(16):
            at = (seen[i] == p).nonzero()
            value = h[i, 1 + int(at)] if len(at) else own["decoder.hidden"][0, 0]
            rates = 10_000 ** (-torch.arange(width // 4) / (width / 4))
            angles = [c * rates for c in (p % 4, p // 4)]
            row.append(value + torch.cat([wave(a) for a in angles for wave in (torch.sin, torch.cos)]).to(value))
        whole.append(torch.stack(row))
    y = torch.stack(whole)
    for k in range(2):
        y = attended(y, own, f"decoder.blocks.{k}.", heads=2)
    y = F.layer_norm(y, (width,), own["decoder.norm.weight"], own["decoder.norm.bias"], 1e-6)
    y = F.linear(y, own["pixels.weight"], own["pixels.bias"])[:, 1:]

    total = x.new_zeros(())
    for i in range(len(x)):
        for p in hidden[i].tolist():
            row, column = 4 * (p // 4), 4 * (p % 4)
            patch = x[i, :, row : row + 4, column : column + 4].permute(1, 2, 0).flatten()
            total = total + ((patch - patch.mean()) / (patch.var() + 1e-6).sqrt() - y[i, p]).square().mean()
    return total / hidden.numel()


def attended(h, state, name, heads):
    """A transformer block with norms before its parts."""

    def linear(z, part):
        return F.linear(z, state[f"{name}{part}.weight"], state[f"{name}{part}.bias"])

    def norm(z, part):
        return F.layer_norm(z, z.shape[-1:], state[f"{name}{part}.weight"], state[f"{name}{part}.bias"], 1e-6)

    n, t, d = h.shape
    q, k, v = linear(norm(h, "norm1"), "attn.qkv").view(n, t, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(2, 3) / (d // heads) ** 0.5).softmax(-1)
    h = h + linear((weights @ v).transpose(1, 2).reshape(n, t, d), "attn.proj")
    return h + linear(F.gelu(linear(norm(h, "norm2"), "mlp.fc1")), "mlp.fc2")


def gradients(loss, encoder, learner):
    named = {**dict(encoder.named_parameters()), **dict(learner.named_parameters())}
    found = torch.autograd.grad(loss, list(named.values()))
    return dict(zip(named, found, strict=True))


def test_a_plain_implementation_gives_the_same_loss_and_gradient():
    encoder, (learner,) = made()
    x = images()
    seen, hidden = learner.places(KEY.key, 0, len(x), x.device)
    ours, theirs = loss_of(learner, x), plain_mae(encoder, learner, x, seen, hidden)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-7)  # places are kept in float32
    mine, plain = gradients(ours, encoder, learner), gradients(theirs, encoder, learner)
    assert max((mine[name] - plain[name]).abs().max().item() for name in mine) < 1e-7
    assert min(mine[name].abs().max().item() for name in mine) > 0  # each parameter learns


@pytest.mark.filterwarnings("ignore")
def test_lightlys_modules_give_the_same_loss_and_gradient():
    """Beside lightly (MIT), where it is installed; last run with lightly 1.6.0."""
    modules = pytest.importorskip("lightly.models.modules")
    utils = pytest.importorskip("lightly.models.utils")
    import timm

    encoder, (learner,) = made()
    x = images()
    vit = timm.create_model("test_vit", num_classes=0, img_size=16, patch_size=4, dynamic_img_size=False).double()
    vit.load_state_dict(encoder.state_dict(), strict=False)
    backbone = modules.MaskedVisionTransformerTIMM(
        vit, weight_initialization="skip", pos_embed_initialization="skip"
    ).double()
    decoder = modules.MAEDecoderTIMM(16, 4, embed_dim=64, decoder_embed_dim=16, decoder_depth=2, decoder_num_heads=2)
    names = {"narrow": "decoder_embed", "hidden": "mask_token", "blocks": "decoder_blocks", "norm": "decoder_norm"}
    state = {}
    for name, t in learner.state_dict().items():
        first, _, rest = name.removeprefix("decoder.").partition(".")
        if name.startswith("decoder."):
            state[names[first] + f".{rest}" * bool(rest)] = t
        elif name.startswith("pixels."):
            state[name.replace("pixels", "decoder_pred")] = t
    decoder.double().load_state_dict({**state, "decoder_pos_embed": decoder.decoder_pos_embed.double()})
    seen, hidden = learner.places(KEY.key, 0, len(x), x.device)
    keep = torch.cat([seen.new_zeros(len(x), 1), seen + 1], 1)
    encoded = backbone.encode(x, idx_keep=keep)
    tokens = utils.repeat_token(decoder.mask_token, (len(x), 17))
    tokens = utils.set_at_index(tokens, keep, decoder.embed(encoded))
    predicted = decoder.predict(utils.get_at_index(decoder.decode(tokens), hidden + 1))
    target = utils.get_at_index(utils.patchify(x, 4), hidden)
    target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
    theirs, ours = F.mse_loss(predicted, target), loss_of(learner, x)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-7)
    (mine,) = torch.autograd.grad(ours, encoder.get_parameter("blocks.0.attn.qkv.weight"))
    (other,) = torch.autograd.grad(theirs, vit.get_parameter("blocks.0.attn.qkv.weight"))
    assert (mine - other).abs().max() < 1e-7


def test_blocks_have_decoders_of_their_own_and_no_gradient_crosses():
    """Each draws the same mask again, and compares with the pixels."""
    encoder, learners = made("simultaneous")
    assert len(learners) == 6 and len({id(learner.decoder) for learner in learners}) == 6
    signal = Signal.from_views([images()])
    for k, learner in enumerate(learners):
        loss, after = learner(signal, KEY)
        assert after.online[0].shape == (6, 5, 64) and torch.equal(after.target[0], images())
        passed = learner.pass_on(signal, KEY)
        assert torch.equal(passed.online[0], after.online[0])
        loss.backward()
        touched = {name for name, p in encoder.named_parameters() if p.grad is not None}
        encoder.zero_grad()
        other = {name for name in touched if name.startswith("blocks.") and not name.startswith(f"blocks.{k}.")}
        assert touched and not other
        signal = after
    whole = encoder.maps(images())[-1]
    assert not torch.equal(whole[:, :5], signal.online[0])


def test_what_is_diagnosed():
    """Features of whole images, as the encoder gives them, and reconstructions behind the same mask of every image."""
    encoder, learners = made("simultaneous")
    x = given = images()
    for learner, expected in zip(learners, encoder.maps(x), strict=True):
        outputs, given = learner.outputs(given)
        assert torch.allclose(outputs["encoder"], expected[:, 1:].mean(1).float())
        assert outputs["reconstruction"].shape == (6, 8 * 48)
    alike, _ = learners[0].outputs(images()[:1].expand(4, -1, -1, -1))
    assert torch.allclose(alike["reconstruction"][0], alike["reconstruction"][3])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["views=[{}, {}]"], "views: learner.kind=mae sees 1 of an image, 2 given"),
        (["scope=overlapping"], "scope.kind=overlapping: learner.kind=mae trains with end_to_end or blockwise"),
        (["scope={kind: blockwise, pool: l2, grid: 2}"], "scope.pool: learner.kind=mae has no pooling"),
        (["scope={kind: blockwise, noise: 0.1}"], "scope.noise: learner.kind=mae has no pooling and adds no noise"),
        (
            ["scope={kind: blockwise, per_block: {1: {objective: {scale: 2.0}}}}"],
            "per_block.1.objective: learner.kind=mae",
        ),
        (["train.micro_batch=2"], "train.micro_batch: learner.kind=mae takes its batch as a whole"),
        (["train.compile=true"], "train.compile: learner.kind=mae runs as it is"),
        (["encoder.drop_path=0.1"], "encoder.drop_path is for the siamese learner"),
        (["projector={dims: [8]}"], "projector: it belongs to the siamese learner"),
        (["predictor={dims: [8]}"], "predictor: it belongs to the siamese learner"),
        (["objective=supervised"], "objective: it belongs to the siamese learner"),
        (["target={kind: pruned, ratio: 0.5}"], "target: it belongs to the siamese learner"),
        (["learner.mask=1"], "learner.mask: should be less than 1"),
        (["learner.masc=0.5"], "learner.masc: unknown field; did you mean learner.mask"),
        (["learner=mea"], "learner.kind: unknown kind 'mea'; did you mean mae"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(overrides, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")) as error:
        compose("mae", overrides=overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"encoder": {"kind": "resnet10", "patch": None}},
            "mae cannot be made: it hides tokens, and these blocks give maps",
        ),
        (
            {"encoder": {"kind": "test_vit_relpos", "patch": None}, "data": {"size": 32}},
            "mae cannot be made: its blocks",
        ),
        ({"learner": {"mask": 0.99}}, "learner.mask=0.99 of 16 patches leaves none to see"),
        ({"learner": {"decoder_width": 18}}, "learner.decoder_width=18 is no multiple of 4 and of"),
    ],
)
def test_what_does_not_fit_the_encoder_is_refused_in_one_line(fields, message, tmp_path):
    config = tiny.config("mae", **fields)
    with pytest.raises(InputError, match=message) as error:
        tiny.trainer(config, tmp_path / "run")
    assert "\n" not in str(error.value)
