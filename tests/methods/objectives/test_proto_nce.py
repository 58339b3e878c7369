"""Prototypes: against published code, k-means against cases by hand, and what a batch knows of its images."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from formulas import assert_golden, draw, value_and_gradients

from twinblock.core.durations import Duration
from twinblock.core.errors import InputError
from twinblock.core.seeding import generator
from twinblock.methods.learner import Batch
from twinblock.methods.objectives import InfoNCE, ProtoNCE
from twinblock.methods.objectives.k_means import k_means, nearest
from twinblock.methods.objectives.proto_nce import among_prototypes, concentrations


@pytest.mark.parametrize("case", ["a", "b"])
def test_the_loss_golden(golden, case):
    """Published code drew the other prototypes; here they are given."""
    g = {name: golden[f"protonce/{case}/{name}"] for name in ("q", "k", "queue", "T", "index", "loss", "g_q")}
    sets = [
        {name: torch.tensor(golden[f"protonce/{case}/set{i}/{name}"]) for name in SETS}
        for i in range(int(golden[f"protonce/{case}/n_sets"]))
    ]
    instances = InfoNCE(*g["queue"].shape, float(g["T"])).double()
    instances.queue.copy_(torch.tensor(g["queue"].T))

    def loss(q):
        given = [(s["centroids"], s["density"], s["im2cluster"][g["index"]], s["neg_ids"]) for s in sets]
        terms = [among_prototypes(F.normalize(q, dim=1), *one) for one in given]
        return instances(q, torch.tensor(g["k"])) + torch.stack(terms).mean()

    assert_golden(value_and_gradients(loss, g["q"]), [g["loss"], g["g_q"]])


SETS = ("centroids", "density", "im2cluster", "neg_ids")


@pytest.mark.parametrize("case", ["a", "b"])
def test_concentrations_golden(golden, case):
    """With a cluster of one image, and in b an empty one."""
    names = ("x", "centroids_raw", "im2cluster", "T", "density")
    g = {name: golden[f"pcl_density/{case}/{name}"] for name in names}
    x, raw, own = (torch.tensor(g[name]) for name in names[:3])
    assert torch.equal(nearest(x, raw)[0], own)
    assert_golden([concentrations(x, raw, own, float(g["T"]))], [g["density"]])


def test_clusters_of_equal_images_have_a_finite_loss():
    x, own = torch.ones(6, 3, dtype=torch.float64), torch.tensor([0, 0, 0, 1, 1, 1])
    phi = concentrations(x, torch.ones(2, 3, dtype=torch.float64), own, 0.2)
    assert (phi > 0).all() and phi.isfinite().all()


def made(images=40, clusters=(4, 7), queue=6, dim=5, **fields):
    objective = ProtoNCE(dim, queue, 0.2, clusters, images=images, **fields).double()
    objective.begin_epoch(lambda: draw(images, dim, seed=9), 0, 10)
    return objective


def test_the_loss_of_a_batch_is_that_of_the_clusters_of_its_images():
    """By a loop over images and columns; clusters of other images are all compared, as there are few."""
    objective, z, t = made(), draw(6, 5, seed=1), draw(6, 5, seed=2)
    index = torch.tensor([3, 39, 11, 0, 3, 20])

    def by_loop(z, t):
        total = InfoNCE.forward(objective, z, t)
        for i, k in enumerate(objective.clusters):
            centroids, phi = objective.get_buffer(f"centroids_{i}"), objective.get_buffer(f"concentrations_{i}")
            own = [int(objective.assignment[i, image]) for image in index]
            columns = own + [c for c in range(k) if c not in own]
            for row, c in zip(z, own, strict=True):
                logits = [row @ centroids[b] / row.norm() / phi[b] for b in columns]
                below = sum(x.exp() for x in logits).log()
                total = total + (below - row @ centroids[c] / row.norm() / phi[c]) / len(z) / len(objective.clusters)
        return total

    batch = Batch(None, (0, 0), 0, index)
    actual = value_and_gradients(lambda z: objective(z, t, batch), z)
    assert_golden(actual, value_and_gradients(lambda z: by_loop(z, t), z))
    assert torch.autograd.gradcheck(lambda z: objective(z, t, batch), (z.requires_grad_(),))


def test_other_prototypes_are_drawn_by_the_step_and_belong_to_no_image_of_the_batch():
    objective, own = made(clusters=(30,), queue=6), torch.tensor([0, 4, 4, 29])
    first, again, other = (objective.others(30, own, (0, step), 0).tolist() for step in (1, 1, 2))
    assert first == again != other
    assert len(set(first)) == 6 and not {0, 4, 29} & set(first)


def test_before_the_warmup_has_ended_there_are_no_prototypes():
    objective = ProtoNCE(5, 6, 0.2, (4,), warmup=Duration.parse("2epochs"), epoch_steps=3, images=40).double()
    z, t, asked = draw(6, 5, seed=1), draw(6, 5, seed=2), []
    for step, clustered in ((0, False), (3, False), (6, True)):
        objective.begin_epoch(lambda: asked.append(1) or draw(40, 5), step, 12)
        assert (objective(z, t) != InfoNCE.forward(objective, z, t)) == clustered == bool(asked)


def test_prototypes_have_length_1_and_images_belong_to_the_nearest_centroid():
    objective, x = made(), F.normalize(draw(40, 5, seed=9), dim=1)
    for i, k in enumerate(objective.clusters):
        torch.testing.assert_close(objective.get_buffer(f"centroids_{i}").norm(dim=1), torch.ones(k).double())
        means = torch.stack([x[objective.assignment[i] == c].mean(0) for c in range(k)])
        assert torch.equal(objective.assignment[i].unique(), torch.arange(k))
        assert torch.equal(nearest(x, means)[0], objective.assignment[i])  # Lloyd's steps have come to rest


def test_one_cluster_of_nearly_all_is_said():
    x = torch.cat([torch.ones(21, 3) + 1e-4 * draw(21, 3).float(), 10 * torch.eye(3).repeat(5, 1)])
    objective = ProtoNCE(3, 6, 0.2, (4,), images=36)
    assert "more than half of the images" in objective.begin_epoch(lambda: x, 0, 1)
    assert made().begin_epoch(lambda: draw(40, 5, seed=9), 0, 1) == ""


def test_more_clusters_than_images_are_refused():
    with pytest.raises(InputError, match=r"objective.clusters=\[4, 41\]: there are 40 images"):
        ProtoNCE(5, 6, 0.2, (4, 41), images=40)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_k_means_finds_clusters_that_lie_apart(k):
    centres = 10 * torch.eye(k, 6, dtype=torch.float64)
    own = torch.arange(12 * k) % k
    centroids, found = k_means(centres[own] + 0.1 * draw(12 * k, 6), k, generator("test", k))
    pairs = {(int(a), int(b)) for a, b in zip(own, found, strict=True)}
    assert len(pairs) == k
    for a, b in pairs:
        assert (centroids[b] - centres[a]).norm() < 0.2


def test_k_means_is_no_worse_than_that_of_scikit_learn():
    from sklearn.cluster import KMeans

    x = draw(200, 4, seed=3)
    theirs = KMeans(8, n_init=5, init="random", max_iter=20, random_state=0).fit(x.numpy()).inertia_
    ours = float(nearest(x, k_means(x, 8, generator("test", 0))[0])[1].sum())
    assert ours < 1.03 * theirs


@pytest.mark.parametrize("seed", range(3))
def test_a_centroid_without_images_moves_to_the_farthest_one(seed):
    """All but one row are equal: of three starts among them two have no rows."""
    x = torch.full((20, 2), 5.0, dtype=torch.float64)
    x[7] = torch.tensor([8.0, 9.0])
    centroids, own = k_means(x, 3, generator("test", seed), starts=1)
    assert (centroids == x[7]).all(1).sum() == 1 and own[7] != own[0]
    assert np.isfinite(centroids.numpy()).all()


def test_the_loss_at_chance_counts_keys_and_prototypes():
    from types import SimpleNamespace

    fields = SimpleNamespace(queue=100, clusters=(16, 50, 1000))
    expected = math.log(101) + (math.log(32) + math.log(32 + 18) + math.log(132)) / 3
    assert ProtoNCE.chance(fields, 32) == pytest.approx(expected)
