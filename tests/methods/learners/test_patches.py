"""Greedy InfoMax and CLAPP: patches, losses by loops, what is drawn, no gradient between blocks, what is refused."""

import math
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

import twinblock
from twinblock.config.recipes import compose
from twinblock.core.errors import InputError
from twinblock.diagnosis.chance import chance_loss
from twinblock.methods.learner import Batch, Signal
from twinblock.methods.patches import Patches, patches_of

KEY = Batch(None, (0, 3), 0)
GOLDEN = Path(__file__).parents[2] / "golden" / "patches.npz"
SEVEN = {"patch": 4, "stride": 2, "steps": 5, "skip": 1}  # rows of 7 patches of images of 16 px


def made(method: str, scope: str = "simultaneous", **fields):
    _, encoder, learners = tiny.learners(method, scope, **fields)
    return encoder, learners


def images(n: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_patches_lie_image_by_image_and_row_by_row():
    x = images(2)
    cut = patches_of(x, 8, 4)
    assert cut.shape == (18, 3, 8, 8)
    for i, row, column in ((0, 0, 0), (0, 1, 2), (1, 2, 0)):
        assert torch.equal(cut[9 * i + 3 * row + column], x[i, :, 4 * row : 4 * row + 8, 4 * column : 4 * column + 8])


def grid(learner: Patches, encoder, x: torch.Tensor) -> list[list[list[torch.Tensor]]]:
    """z of each image, row and column, one patch at a time, of the first block."""
    rows = range(learner.rows)
    size, stride = learner.size, learner.stride
    cut = [
        [[x[i : i + 1, :, stride * r : stride * r + size, stride * c : stride * c + size] for c in rows] for r in rows]
        for i in range(len(x))
    ]
    return [[[encoder.as_blocks()[0](p)[0].mean((1, 2)) for p in row] for row in image] for image in cut]


def places(learner: Patches, n: int, k: int):
    """(image, row, column) of the contexts of step k, in the order of their numbers."""
    by = k + learner.skip
    return [(i, r, c) for i in range(n) for r in range(learner.rows - by) for c in range(learner.rows)]


def same_gradients(mine: torch.Tensor, plain: torch.Tensor, parameters) -> None:
    for a, b in zip(torch.autograd.grad(mine, parameters), torch.autograd.grad(plain, parameters), strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-12)
        assert a.abs().max() > 0


@pytest.mark.parametrize("fields", [{}, {"steps": 2, "skip": 0, "negatives": 3}])
def test_greedy_infomax_by_loops_over_places(fields):
    encoder, (first, *_) = made("greedy_infomax", learner=fields)
    x = images()
    z, terms = grid(first, encoder, x), []
    for k, step in enumerate(first.maps, start=1):
        at = places(first, len(x), k)
        drawn = first.draws((*KEY.key, k), len(at), first.negatives, len(at), x.device)
        of_step = []
        for (i, r, c), others in zip(at, drawn.tolist(), strict=True):
            candidates = [(i, r, c), *(at[j] for j in others)]
            scores = [z[i][r][c] @ step.weight @ z[a][b + k + first.skip][d] for a, b, d in candidates]
            of_step.append(-torch.log(torch.exp(scores[0]) / sum(torch.exp(s) for s in scores) + 1e-11))
        terms.append(sum(of_step) / len(of_step))
    plain = sum(terms) / len(terms)
    mine, _ = first(Signal.from_views([x]), KEY)
    assert mine.item() == pytest.approx(plain.item(), rel=1e-10)
    parameters = [*encoder.as_blocks()[0].parameters(), *first.maps.parameters()]
    same_gradients(mine, plain, parameters)


@pytest.mark.parametrize(
    "fields",
    [{}, {"either": False, "mirrored": False, "negatives": 4}, {"steps": 2, "skip": 0}, {"either": False}],
)
def test_clapp_by_loops_over_places(fields):
    encoder, (first, *_) = made("clapp", learner=fields)
    x = images(6)
    z, n = grid(first, encoder, x), 6
    total = torch.zeros((), dtype=torch.float64)
    sets = [first.maps] if first.mirror is None else [first.maps, first.mirror]
    for which, maps in enumerate(sets):
        key = (*KEY.key, which)
        pulled = [True] * n
        pushed = [True] * n
        if first.either:
            pulled = [d == 0 for d in first.draws((*key, "either"), n, 1, 2, x.device)[:, 0].tolist()]
            pushed = [not taken for taken in pulled]
            assert any(pulled) and any(pushed)
        for k, step in enumerate(maps, start=1):
            at = places(first, n, k)
            if first.negatives is None:
                partner = first.draws((*key, k), n, 1, n, x.device)[:, 0].tolist()
                drawn = [[at.index((partner[i], r, c))] for i, r, c in at]
            else:
                drawn = first.draws((*key, k), len(at), first.negatives, len(at), x.device).tolist()
            pull, push = [[] for _ in range(n)], [[] for _ in range(n)]

            def score(context, below, step=step, k=k, which=which):
                (i, r, c), (a, b, d) = context, below
                left, right = z[i][r][c], z[a][b + k + first.skip][d]
                if first.mirror is not None:
                    left, right = (left.detach(), right) if which == 0 else (left, right.detach())
                return left @ step.weight @ right

            for place, others in zip(at, drawn, strict=True):
                pull[place[0]].append(torch.relu(1 - score(place, place)))
                push[place[0]] += [torch.relu(1 + score(place, at[j])) for j in others]
            for parts, taken in ((pull, pulled), (push, pushed)):
                means = [sum(p) / len(p) for p, own in zip(parts, taken, strict=True) if own]
                total = total + sum(means) / len(means) / len(maps)
    mine, _ = first(Signal.from_views([x]), KEY)
    assert mine.item() == pytest.approx(total.item(), rel=1e-10)
    parameters = [*encoder.as_blocks()[0].parameters(), *first.maps.parameters()]
    same_gradients(mine, total, parameters)


@pytest.mark.parametrize("method", ["greedy_infomax", "clapp"])
def test_the_public_code_gives_the_same_loss_and_gradient(method, monkeypatch):
    """By tests/golden/patches.py, which ran the authors' own modules on the same z, weights and draws."""
    golden = np.load(GOLDEN)
    _, (first, *_) = made(method, learner={**SEVEN, "patch": 4})
    cases = ["greedy_infomax"] if method == "greedy_infomax" else ["clapp_s", "clapp"]
    for case in cases:
        of = {name.removeprefix(f"{case}/"): golden[name] for name in golden.files if name.startswith(f"{case}/")}
        z = torch.from_numpy(of["z"]).permute(0, 2, 3, 1).requires_grad_()
        sets = [torch.from_numpy(of["maps"])] + ([torch.from_numpy(of["mirror"])] if "mirror" in of else [])
        modules = []
        for weights in sets:
            layers = torch.nn.ModuleList(torch.nn.Linear(6, 6, bias=False) for _ in weights).double()
            for layer, weight in zip(layers, weights, strict=True):
                layer.weight.data = weight
            modules.append(layers)
        first.maps = modules[0]
        if method == "clapp":
            first.mirror = modules[1] if len(modules) > 1 else None
            first.either, first.negatives = case == "clapp", None if case == "clapp" else 16
        recorded = iter(of[f"draws{i}"] for i in range(len([n for n in of if n.startswith("draws")])))
        monkeypatch.setattr(Patches, "draws", lambda self, *_, recorded=recorded: torch.from_numpy(next(recorded)))
        loss = first.loss(z, (0, 0))
        assert loss.item() == pytest.approx(float(of["loss"]), rel=1e-10)
        loss.backward()
        assert np.abs(z.grad.permute(0, 3, 1, 2).numpy() - of["gradient"]).max() < 1e-10
        assert np.abs(first.maps[0].weight.grad.numpy() - of["gradient_of_map"]).max() < 1e-10


@pytest.mark.parametrize("method", ["greedy_infomax", "clapp"])
def test_no_loss_reaches_another_block_and_what_is_kept_is_measured(method):
    encoder, learners = made(method)
    x, signal = images(), Signal.from_views([images()])
    given = x
    for block, learner, expected in zip(encoder.as_blocks(), learners, encoder.maps(x), strict=True):
        outputs, given = learner.outputs(given)
        assert torch.allclose(outputs["encoder"].double(), expected.mean((2, 3)), atol=1e-6)
        assert outputs["patches"].shape == outputs["encoder"].shape
        loss, after = learner(signal, KEY)
        passed = learner.pass_on(signal, KEY)
        assert torch.equal(after.online[0], passed.online[0]) and not after.online[0].requires_grad
        loss.backward()
        touched = {id(p) for p in encoder.parameters() if p.grad is not None}
        assert touched and touched <= {id(p) for p in block.parameters()}
        encoder.zero_grad()
        signal = after


def test_draws_follow_from_seed_step_and_block():
    _, (first, second, *_) = made("clapp")
    cpu = torch.device("cpu")
    drawn = first.draws((0, 1), 400, 3, 7, cpu)
    assert torch.equal(first.draws((0, 1), 400, 3, 7, cpu), drawn)
    assert not torch.equal(first.draws((0, 2), 400, 3, 7, cpu), drawn)
    assert not torch.equal(second.draws((0, 1), 400, 3, 7, cpu), drawn)
    counts = torch.bincount(drawn.flatten(), minlength=7)
    assert len(counts) == 7 and (counts - 1200 / 7).abs().max() < 6 * (1200 * 6 / 49) ** 0.5


def test_chance_is_the_loss_of_scores_that_say_nothing():
    for method, expected in (("greedy_infomax", math.log(17)), ("clapp", 4.0)):
        assert chance_loss(compose(method)) == pytest.approx(expected)
        _, (first, *_) = made(method, learner={"negatives": 16 if method == "greedy_infomax" else None})
        for maps in filter(None, (first.maps, getattr(first, "mirror", None))):
            for layer in maps:
                torch.nn.init.zeros_(layer.weight)
        assert first(Signal.from_views([images(8)]), KEY)[0].item() == pytest.approx(expected, rel=1e-6)
    assert chance_loss(compose("clapp", {"learner": {"mirrored": False}})) == 2.0


@pytest.mark.parametrize("method", ["greedy_infomax", "clapp"])
def test_it_learns_which_patch_lies_below(method, tmp_path):
    """Columns of one grey each, all patches of which are alike: far below chance."""
    rng = np.random.default_rng(0)
    pixels = np.repeat(np.repeat(rng.integers(0, 255, (64, 1, 4, 1)), 4, 2), 16, 1).astype(np.uint8)
    run = twinblock.pretrain(
        method,
        data=np.repeat(pixels, 3, 3),
        out=tmp_path / "run",
        quiet=True,
        overrides=[
            *("data.batch=32", "encoder.kind=resnet10", "encoder.width=8", "train.length=100steps", "optim.lr=2e-2"),
            *("train.checkpoint_every=100%", *(f"learner.{k}={v}" for k, v in tiny.GRID.items())),
            "views=[{crop: null, flip: 0, jitter_p: 0, gray: 0}]",
        ],
    )
    losses = [row["loss"][1] for row in run.metrics() if "loss" in row]
    assert np.mean(losses[-5:]) < 0.8 * chance_loss(run.config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"learner": {"steps": 2, "skip": 1}}, "3 rows of patches of 16 px are too few to look 3 ahead"),
        ({"learner": {"patch": 17}}, "0 rows of patches of 16 px are too few"),
        ({"encoder": {**tiny.SMALL_VIT, "width": None, "norm": "batch"}}, "these blocks give no maps"),
        ({"encoder": {**tiny.LAYERS, "stem": "standard"}}, "patches of 8 px are too small for block 1"),
    ],
)
@pytest.mark.parametrize("method", ["greedy_infomax", "clapp"])
def test_what_does_not_fit_is_refused_in_one_line(method, fields, message, tmp_path):
    with pytest.raises(InputError, match=message) as error:
        tiny.trainer(tiny.config(method, "simultaneous", **fields), tmp_path / "run")
    assert "\n" not in str(error.value)


def test_what_makes_no_sense_is_refused_in_one_line():
    for method, override, message in (
        ("greedy_infomax", "learner.negatives=0", "learner.negatives"),
        ("clapp", "learner.steps=0", "learner.steps"),
        ("clapp", "views=[{}, {}]", "views: learner.kind=clapp sees 1 of an image, 2 given"),
        ("clapp", "scope=overlapping", "learner.kind=clapp trains with end_to_end or blockwise"),
    ):
        with pytest.raises(InputError, match=message) as error:
            compose(method, overrides=[override])
        assert "\n" not in str(error.value)
