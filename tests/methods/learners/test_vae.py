"""VAE: the bound by plain equations and by integration, draws, samples, an empty code as a verdict, what is refused."""

import math

import numpy as np
import pytest
import tiny
import torch

import twinblock
from twinblock.config.recipes import compose
from twinblock.core.errors import InputError
from twinblock.core.seeding import normal
from twinblock.diagnosis.verdict import judge, verdict
from twinblock.methods.learner import Batch, Signal
from twinblock.methods.learners.vae import VAE, divergence

KEY = Batch(None, (0, 3), 0)


def made(scope: str = "end_to_end", **learner):
    _, encoder, learners = tiny.learners("vae", scope, learner=learner)
    return encoder, learners


def images(n: int = 6) -> torch.Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("pixels", ["bernoulli", "gaussian"])
def test_the_bound_as_its_equations_give_it(pixels):
    """Loops over images, pixels and numbers of the code."""
    encoder, (learner,) = made(pixels=pixels, weight=0.7)
    x = images()
    noise = normal(("code", 0, 3), 0, 6, 4)
    own, state = dict(learner.named_parameters()), encoder.state_dict(keep_vars=True)
    terms = []
    for image, e in zip(x, noise, strict=True):
        h = image.flatten()
        for name in ("layer1", "layer2"):
            h = (state[f"{name}.1.weight"].flatten(1) @ h + state[f"{name}.1.bias"]).clamp(min=0)
        mean = own["mean.weight"] @ h + own["mean.bias"]
        logarithm = own["log_variance.weight"] @ h + own["log_variance.bias"]
        z = mean + torch.exp(logarithm / 2) * e
        y = (own["decoder.0.weight"] @ z + own["decoder.0.bias"]).clamp(min=0)
        y = own["decoder.2.weight"] @ y + own["decoder.2.bias"]
        term = torch.zeros((), dtype=torch.float64)
        for a, b in zip(y, image.flatten(), strict=True):
            p = 1 / (1 + torch.exp(-a))
            term = (
                term - b * torch.log(p) - (1 - b) * torch.log(1 - p)
                if pixels == "bernoulli"
                else term + (a - b) ** 2 / 2
            )
        for m, v in zip(mean, logarithm, strict=True):
            term = term - 0.7 / 2 * (1 + v - m**2 - torch.exp(v))
        terms.append(term)
    theirs = sum(terms) / len(terms)
    mine, _ = learner(Signal.from_views([x]), KEY)
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-10)
    named = {id(p): p for p in (*encoder.parameters(), *learner.parameters())}
    for a, b in zip(*(torch.autograd.grad(loss, list(named.values())) for loss in (mine, theirs)), strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-12) and a.abs().max() > 0


def test_the_divergence_is_the_integral():
    m, s = torch.tensor([[0.7]]).double(), 0.4
    z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    q = torch.exp(-(((z - m) / s) ** 2) / 2) / (s * math.sqrt(2 * math.pi))
    p = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    integral = torch.trapezoid(torch.where(q > 0, q * (q.clamp(min=1e-300) / p).log(), 0), z)
    found = divergence(m, torch.tensor([[2 * math.log(s)]]).double())
    assert found.item() == pytest.approx(integral.item(), rel=1e-6)
    assert divergence(torch.zeros(1, 3), torch.zeros(1, 3)).item() == 0


def test_normal_numbers_follow_from_key_and_place():
    whole = normal(("a", 1), 0, 5000, 4)
    assert torch.equal(normal(("a", 1), 100, 7, 4), whole[100:107])
    assert not torch.equal(normal(("a", 2), 0, 5000, 4), whole)
    assert abs(whole.mean()) < 6 / 20_000**0.5 and abs(whole.var() - 1) < 6 * (2 / 20_000) ** 0.5
    ranks = whole.flatten().sort().values
    theory = torch.special.ndtri((torch.arange(20_000) + 0.5).double() / 20_000)
    assert (ranks - theory)[200:-200].abs().max() < 0.06


def test_blocks_have_codes_of_their_own_and_no_gradient_crosses():
    encoder, learners = made("simultaneous")
    x = given = images()
    signal = Signal.from_views([x])
    for k, (learner, expected) in enumerate(zip(learners, encoder.maps(x), strict=True), start=1):
        outputs, given = learner.outputs(given)
        assert torch.allclose(outputs["encoder"].double(), expected.flatten(1), atol=1e-6)
        assert outputs["code"].shape == (6, 4) and outputs["reconstruction"].shape == outputs["pixels"].shape == (
            6,
            768,
        )
        assert outputs["divergence"].shape == outputs["reconstruction_loss"].shape == (6,)
        loss, after = learner(signal, KEY)
        assert torch.equal(after.online[0], learner.pass_on(signal, KEY).online[0])
        loss.backward()
        touched = {name for name, p in encoder.named_parameters() if p.grad is not None}
        assert touched and all(name.startswith(f"layer{k}.") for name in touched)
        encoder.zero_grad()
        signal = after


def test_samples_are_images_of_codes_drawn_from_noise():
    _, (learner,) = made()
    drawn = learner.samples(5, 0)
    assert drawn.shape == (5, 3, 16, 16) and 0 <= drawn.min() <= drawn.max() <= 1
    assert torch.equal(learner.samples(5, 0), drawn) and not torch.equal(learner.samples(5, 1), drawn)
    codes = normal(("samples", 0), 0, 5, 4)
    assert torch.allclose(drawn, learner.decoder(codes).sigmoid().view_as(drawn))


def stripes(n: int = 128) -> np.ndarray:
    across = np.random.default_rng(0).integers(0, 2, n).astype(bool)
    rows = np.where(np.arange(8) % 4 < 2, 0, 255).astype(np.uint8)
    return np.repeat(np.where(across[:, None, None], rows[None, :, None], rows[None, None, :])[..., None], 3, 3)


SMALL = ["data.batch=32", "encoder.width=[32]", "learner.code=4", "learner.decoder_width=32", "train.length=60epochs"]
SMALL += ["train.checkpoint_every=100%", "optim.lr=0.04"]


def test_a_code_that_tells_nothing_is_a_posterior_collapse(tmp_path):
    """Two kinds of images: a code holds log 2 nats or more, and nothing where the divergence weighs too much."""
    headlines, told = {}, {}
    for weight in (1.0, 1000.0):
        run = twinblock.pretrain(
            "vae",
            data=stripes(),
            out=tmp_path / f"{weight}",
            overrides=[*SMALL, f"learner.weight={weight}"],
            quiet=True,
        )
        rows = [row["diagnosis"][0] for row in run.metrics() if "diagnosis" in row]
        headlines[weight], told[weight] = run.result["headline"], rows[-1]["divergence"]
        assert judge(run.metrics(), [0], run.config)[0].headline == headlines[weight]
    assert told[1.0] > math.log(2) and headlines[1.0] not in ("posterior collapse", "reconstructs the mean")
    assert told[1000.0] < 0.1 and headlines[1000.0] == "posterior collapse"
    assert "learner.weight=1000 asks for an empty code: published 1" in run.result["advice"]


def test_a_code_is_empty_below_a_tenth_of_a_nat():
    from looks import look

    def rows(told):
        varied = {"feature_norm": 10.0, "negative_cosine": 0.0}
        parts = {"encoder": look(0.2, 0.7), "reconstruction": varied, "pixels": varied, "divergence": told}
        return [{"step": 100 * i, **parts} for i in range(3)]

    assert verdict(rows(0.09), True).headline == "posterior collapse"
    assert verdict(rows(0.09), True).state == "not started"
    assert verdict(rows(0.11), True).headline != "posterior collapse"


def test_the_bound_falls_and_reconstructions_come_near(tmp_path):
    run = twinblock.pretrain("vae", data=stripes(), out=tmp_path / "run", overrides=SMALL, quiet=True)
    losses = [row["loss"][0] for row in run.metrics() if "loss" in row]
    assert losses[0] == pytest.approx(192 * math.log(2), rel=0.1)  # every pixel is a guess
    assert losses[-1] < 20
    (learner,) = run.learners()
    seen = (torch.from_numpy(stripes(20)).permute(0, 3, 1, 2) / 255).float()
    outputs, _ = learner.outputs(seen)
    assert (outputs["reconstruction"] - outputs["pixels"]).abs().mean() < 0.1
    kinds = learner.samples(200, 0)[:, 0, 0].round().unique(dim=0)
    assert len(kinds) >= 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learner.code=0", "learner.code"),
        ("learner.weight=-1", "learner.weight"),
        ("learner.pixels=poisson", "learner.pixels"),
        ("scope=overlapping", "learner.kind=vae trains with end_to_end or blockwise"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(override, message):
    with pytest.raises(InputError, match=message) as error:
        compose("vae", overrides=[override])
    assert "\n" not in str(error.value)


def test_pixels_and_maps_that_do_not_fit_are_refused_in_one_line(tmp_path):
    with pytest.raises(InputError, match=r"learner.pixels=bernoulli needs pixels from 0 to 1") as error:
        twinblock.pretrain("vae", data=stripes(), out=tmp_path / "a", overrides=[*SMALL, "data.mean=auto"], quiet=True)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="are too many for a code"):
        VAE(torch.nn.Identity(), (3, 64, 64), (2048, 64, 64), code=64)
