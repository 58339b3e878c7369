"""RBMs: the gradient is contrastive divergence, scikit-learn's update is ours, small models as they are summed up."""

import itertools
import math

import numpy as np
import pytest
import tiny
import torch

import twinblock
from twinblock.config.recipes import compose
from twinblock.core.errors import InputError
from twinblock.methods.learner import Batch, Signal
from twinblock.methods.learners.dbn import DBN
from twinblock.nn.plain import plain_network

KEY = Batch(None, (0, 3), 0)


def rbm(visible: int = 16, hidden: int = 5, number: int = 0, kind: str = "bernoulli", **fields) -> DBN:
    """An RBM of a square of pixels, with weights that matter."""
    side = math.isqrt(visible)
    torch.manual_seed(0)
    layer = plain_network("sigmoid_mlp", (hidden,), side, 1)[0][1:]
    learner = DBN(torch.nn.Sequential(*layer), (1, side, side), (hidden, 1, 1), number, kind, **fields).double()
    for p in learner.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return learner


def weights(learner: DBN):
    return learner._layer.weight.flatten(1), learner._layer.bias, learner.visible_bias.flatten()


def states(n: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=n)), dtype=torch.float64)


def test_the_free_energy_sums_the_hidden_units_out():
    """F(v) = -log sum over all h of exp(-E(v, h)), here over all 32 of them."""
    learner = rbm()
    w, c, b = weights(learner)
    v, h = states(16)[::997], states(5)
    energy = -(v @ b)[:, None] - (h @ c)[None] - v @ w.T @ h.T
    expected = -torch.logsumexp(-energy, 1)
    assert torch.allclose(learner.free_energy(v.view(-1, 1, 4, 4)), expected)

    gaussian = rbm(kind="gaussian")
    w, c, b = weights(gaussian)
    v = torch.randn(7, 16, dtype=torch.float64)
    energy = ((v - b) ** 2 / 2).sum(1)[:, None] - (h @ c)[None] - v @ w.T @ h.T
    assert torch.allclose(gaussian.free_energy(v.view(-1, 1, 4, 4)), -torch.logsumexp(-energy, 1))


@pytest.mark.parametrize("kind", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("chains", [None, 7])
def test_the_gradient_is_contrastive_divergence(kind, chains):
    """Means of hv over what is dreamt less those over what is seen; and of v, and of h."""
    learner = rbm(kind=kind, chains=chains, steps=2)
    if chains:
        learner.chains = states(5)[3 : 3 + chains].view(chains, 5, 1, 1).clone()
    seen = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    dreamt, _ = learner.dream(seen, KEY)
    learner(Signal.from_views([seen]), KEY)[0].backward()
    w, c, _ = (x.detach() for x in weights(learner))
    found = [p.grad for p in (learner._layer.weight, learner._layer.bias, learner.visible_bias)]

    def moments(v):
        v = v.flatten(1)
        h = torch.sigmoid(v @ w.T + c)
        return h.T @ v / len(v), h.mean(0), v.mean(0)

    for gradient, data, model in zip(found, moments(seen), moments(dreamt), strict=True):
        assert torch.allclose(gradient.flatten(), (model - data).flatten(), atol=1e-12)
    assert len(dreamt) == (chains or 6)


def test_the_same_updates_as_scikit_learn_from_the_same_draws(monkeypatch):
    """BernoulliRBM (BSD-3) by persistent chains: weights and both biases after five updates, in double precision."""
    from sklearn.neural_network import BernoulliRBM

    data = np.random.default_rng(0).random((50, 16))
    theirs = BernoulliRBM(n_components=5, learning_rate=0.3, batch_size=10, n_iter=1, random_state=0)
    learner = rbm(chains=10)
    w, c, b = (x.detach().numpy().copy() for x in weights(learner))
    theirs.components_, theirs.intercept_hidden_, theirs.intercept_visible_ = w, c, b
    theirs.h_samples_ = np.zeros((10, 5))
    source = np.random.RandomState(7)
    for batch in np.split(data, 5):
        theirs._fit(batch, source)

    source = np.random.RandomState(7)
    monkeypatch.setattr(
        DBN,
        "uniform",
        lambda self, like, *_: torch.from_numpy(source.uniform(size=like.flatten(1).shape)).view_as(like),
    )
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.3)
    for k, batch in enumerate(np.split(data, 5)):
        before = learner.chains.clone()
        loss, _, hidden = learner(Signal.from_views([torch.from_numpy(batch).view(10, 1, 4, 4)]), Batch(None, (0, k)))
        assert torch.equal(learner.chains, before)  # nothing moves before the step
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learner.after_step(k, 5, hidden)
    for mine, other in zip(weights(learner), (w, c, b), strict=True):
        assert np.abs(mine.detach().numpy() - other).max() < 1e-12
    assert np.array_equal(learner.chains.flatten(1).numpy(), theirs.h_samples_)
    assert np.abs(w - weights(rbm())[0].detach().numpy()).max() > 0.01  # they have moved


def test_gibbs_sampling_comes_to_the_distribution_of_the_model():
    """4 visible and 3 hidden units: how often each of 16 images is dreamt, and its probability."""
    learner = rbm(4, 3, steps=30)
    count = 20_000
    dreamt, _ = learner.dream(torch.zeros(count, 1, 2, 2, dtype=torch.float64), KEY)
    code = (dreamt.flatten(1) @ torch.tensor([8.0, 4.0, 2.0, 1.0]).double()).long()
    found = torch.bincount(code, minlength=16) / count
    expected = (-learner.free_energy(states(4).view(-1, 1, 2, 2))).softmax(0).detach()
    assert (found - expected).abs().max() < 5 * 0.5 / count**0.5
    assert (expected - 1 / 16).abs().max() > 0.05  # it is no uniform one


def test_real_units_have_a_variance_of_one_about_their_mean():
    learner = rbm(kind="gaussian")
    hidden = torch.ones(5000, 5, 1, 1, dtype=torch.float64)
    drawn = learner.visible_by(hidden, (0, 0), 0)
    w, _, b = weights(learner)
    assert torch.allclose(learner.expected(hidden)[0].flatten(), w.sum(0) + b)
    assert torch.allclose(drawn.mean(0).flatten(), w.sum(0) + b, atol=6 / 5000**0.5)
    assert torch.allclose(drawn.var(0).flatten(), torch.ones(16).double(), atol=0.15)


def test_draws_follow_from_seed_step_and_place():
    learner = rbm()
    seen = torch.rand(9, 1, 4, 4, dtype=torch.float64)
    whole, _ = learner.dream(seen, KEY)
    part, _ = learner.dream(seen[4:], Batch(None, (0, 3), 4))
    assert torch.equal(part, whole[4:])
    assert not torch.equal(learner.dream(seen, Batch(None, (0, 4)))[0], whole)
    assert not torch.equal(rbm(number=1).dream(seen, KEY)[0], whole)


def test_blocks_see_the_probabilities_of_those_before():
    _, encoder, learners = tiny.learners("dbn")
    x = given = torch.rand(6, 3, 16, 16, dtype=torch.float64)
    signal = Signal.from_views([x])
    for learner, expected in zip(learners, encoder.maps(x), strict=True):
        outputs, given = learner.outputs(given)
        loss, after, hidden = learner(signal, KEY)
        assert torch.allclose(outputs["encoder"].double(), expected.flatten(1), atol=1e-6)
        assert torch.allclose(after.online[0], expected) and not after.online[0].requires_grad
        assert set(hidden.unique().tolist()) <= {0.0, 1.0}
        error = (outputs["reconstruction"] - outputs["pixels"]).square().mean(1)
        assert torch.allclose(outputs["reconstruction_error"], error, atol=1e-6)
        loss.backward()
        touched = {name for name, p in encoder.named_parameters() if p.grad is not None}
        assert touched == {f"layer{learner.number + 1}.1.{part}" for part in ("weight", "bias")}
        encoder.zero_grad()
        signal = after


def stripes(n: int = 200) -> np.ndarray:
    """Four kinds: across or along, and each with either colour first; on average every pixel is grey."""
    rng = np.random.default_rng(0)
    across, inverse = rng.integers(0, 2, (2, n)).astype(bool)
    rows = np.where(np.arange(8) % 4 < 2, 0, 255).astype(np.uint8)
    pixels = np.where(across[:, None, None], rows[None, :, None], rows[None, None, :])
    pixels = np.where(inverse[:, None, None], 255 - pixels, pixels)
    return np.repeat(pixels[..., None], 3, 3)


def test_it_finds_what_it_has_seen_likely_and_metrics_say_so(tmp_path):
    overrides = ["train.length=30epochs", "train.checkpoint_every=100%", "encoder.width=[20]", "optim.lr=2.0"]
    run = twinblock.pretrain("dbn", data=stripes(), out=tmp_path / "run", overrides=overrides, quiet=True)
    rows = [row["diagnosis"][0] for row in run.metrics() if "diagnosis" in row]
    assert rows[-1]["reconstruction_error"] < 0.1 * rows[0]["reconstruction_error"]
    assert rows[-1]["free_energy"] < rows[0]["free_energy"]
    (learner,) = run.learners()
    seen = torch.from_numpy(stripes(50)).permute(0, 3, 1, 2) / 255
    changed = torch.rand(seen.shape, generator=torch.Generator().manual_seed(0)) < 0.25
    near, far = torch.where(changed, 1 - seen, seen), changed.float()
    assert (learner.free_energy(seen) < learner.free_energy(near) - 10).all()
    assert learner.free_energy(seen).mean() < learner.free_energy(far).mean() - 100
    assert run.result["headline"] != "reconstructs the mean"
    assert not (learner.chains == 0).all()  # they have gone on, and were kept


def test_one_that_stands_still_reconstructs_the_mean(tmp_path):
    overrides = ["train.length=10epochs", "train.checkpoint_every=100%", "encoder.width=[20]", "optim.lr=1e-6"]
    run = twinblock.pretrain("dbn", data=stripes(), out=tmp_path / "run", overrides=overrides, quiet=True)
    assert run.result["headline"] == "reconstructs the mean"
    assert "optim.lr" in run.result["advice"]


def test_pixels_that_are_no_probabilities_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"learner.visible=bernoulli needs pixels from 0 to 1") as error:
        twinblock.pretrain("dbn", data=stripes(), out=tmp_path / "a", overrides=["data.mean=imagenet"], quiet=True)
    assert "\n" not in str(error.value)
    real = [
        "data.mean=imagenet",
        "data.std=imagenet",
        "learner.visible=gaussian",
        "optim.lr=1e-3",
        "train.length=2steps",
    ]
    assert twinblock.pretrain("dbn", data=stripes(), out=tmp_path / "b", overrides=real, quiet=True).finished


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (
            {"norm": "rms"},
            "a block has to be one linear layer with a sigmoid; take encoder.kind=sigmoid_mlp encoder.norm=none",
        ),
        (
            {"kind": "mlp"},
            "a block has to be one linear layer with a sigmoid; take encoder.kind=sigmoid_mlp encoder.norm=none",
        ),
        (
            {"kind": "resnet10", "width": None},
            "a block has to be one linear layer with a sigmoid; take encoder.kind=sigmoid_mlp encoder.norm=none",
        ),
    ],
)
def test_what_is_no_rbm_is_refused_in_one_line(encoder, message, tmp_path):
    with pytest.raises(InputError, match=message) as error:
        tiny.trainer(tiny.config("dbn", "sequential", encoder=encoder), tmp_path / "run")
    assert "\n" not in str(error.value)


def test_what_makes_no_sense_is_refused_in_one_line():
    for override, message in (
        ("learner.visible=poisson", "learner.visible"),
        ("learner.steps=0", "learner.steps"),
        ("scope=end_to_end", "learner.kind=dbn trains with blockwise"),
    ):
        with pytest.raises(InputError, match=message) as error:
            compose("dbn", overrides=[override])
        assert "\n" not in str(error.value)
