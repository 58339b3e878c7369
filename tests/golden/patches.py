"""Records what the authors' own losses of Greedy InfoMax and CLAPP give for fixed numbers, in patches.npz.

    python tests/golden/patches.py GREEDY_INFOMAX_FOLDER CLAPP_FOLDER

The folders are clones of loeweX/Greedy_InfoMax (MIT; recorded at 22d17e4) and of EPFL-LCN/pub-illing2021-neurips (MIT;
at 73671e1). Their modules run in double precision; what they draw is recorded as whole numbers in our order of places:
image, row, column. `z`: (images, channels, rows, columns).
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import torch

IMAGES, CHANNELS, SIDE, STEPS, NEGATIVES = 4, 6, 7, 5, 16


def module(file: Path, package: str) -> ModuleType:
    """One file of a repository, whose other imports it does not need here."""
    for name in (package, f"{package}.utils", f"{package}.utils.model_utils", "IPython"):
        sys.modules[name] = ModuleType(name)
    sys.modules[f"{package}.utils"].model_utils = sys.modules[f"{package}.utils.model_utils"]
    sys.modules["IPython"].embed = None
    spec = importlib.util.spec_from_file_location(file.stem, file)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


class Draws:
    """Stands in for `torch.randint` and `choice`, and keeps what they gave in our order of places."""

    def __init__(self):
        self.kept, self.random = [], np.random.RandomState(3)

    def randint(self, high, size, **_):
        drawn = self.random.randint(high, size=size)
        if len(size) == 1:  # one image for each
            self.kept.append(drawn[:, None])
        else:  # row, column, image, negative; numbers in the order row, column, image
            places = drawn.reshape(-1, SIDE, IMAGES, NEGATIVES)
            rows, (row, rest) = len(places), np.divmod(drawn.reshape(places.shape), SIDE * IMAGES)
            column, image = np.divmod(rest, IMAGES)
            ours = (image * rows + row) * SIDE + column
            self.kept.append(ours.transpose(2, 0, 1, 3).reshape(-1, NEGATIVES))
        return torch.from_numpy(drawn)

    def choice(self, names, size, **_):
        drawn = self.random.randint(2, size=size)
        self.kept.append(drawn[:, None])
        return np.array(names)[drawn]


def record(loss_of, modules, draws: Draws, case: str) -> dict[str, np.ndarray]:
    z = torch.from_numpy(np.random.RandomState(0).randn(IMAGES, CHANNELS, SIDE, SIDE)).requires_grad_()
    for k, one in enumerate(modules):
        for j, layer in enumerate(one.W_k):
            weight = np.random.RandomState(10 * k + j + 1).randn(CHANNELS, CHANNELS, 1, 1) / 3
            layer.weight.data = torch.from_numpy(weight)
    loss = loss_of(z)
    loss.backward()
    found = {"z": z.detach(), "loss": loss.detach(), "gradient": z.grad}
    found["gradient_of_map"] = modules[0].W_k[0].weight.grad[:, :, 0, 0]
    for name, one in zip(("maps", "mirror"), modules, strict=False):
        found[name] = torch.stack([layer.weight.detach()[:, :, 0, 0] for layer in one.W_k])
    rows = {f"{case}/{name}": value.numpy() for name, value in found.items()}
    return rows | {f"{case}/draws{i}": drawn for i, drawn in enumerate(draws.kept)}


def main(gim: Path, clapp: Path) -> None:
    torch.set_default_dtype(torch.float64)
    theirs = module(gim / "GreedyInfoMax/vision/models/InfoNCE_Loss.py", "GreedyInfoMax")
    cpu, randint, zeros, ones = SimpleNamespace(type="cpu"), torch.randint, torch.zeros, torch.ones
    options = {"device": cpu, "negative_samples": NEGATIVES, "prediction_step": STEPS, "weight_init": False}
    found = {}

    def on_cpu(make):  # their device is the option itself, and numbers are made in float32
        def made(*size, device=None, dtype=None, **rest):
            kind = torch.float64 if dtype == torch.float32 else dtype
            return make(*size, dtype=kind, **rest)

        return made

    torch.zeros, torch.ones = on_cpu(zeros), on_cpu(ones)
    draws = Draws()
    torch.randint = draws.randint
    loss = theirs.InfoNCE_Loss(SimpleNamespace(**options), CHANNELS, CHANNELS)
    found |= record(lambda z: loss(z, z), [loss], draws, "greedy_infomax")

    theirs = module(clapp / "vision/CLAPPVision/vision/models/ContrastiveLoss.py", "CLAPPVision")
    tensor = torch.tensor
    off = ("gating_av_over_preds", "detach_c", "current_rep_as_negative", "freeze_W_pred", "no_pred", "no_gamma")
    for case, local in (("clapp_s", False), ("clapp", True)):
        draws = Draws()
        torch.randint, theirs.choice = draws.randint, draws.choice
        device = type("Device", (), {"type": "cpu"})()
        torch.tensor = lambda values, **_: _OnCpu(tensor(values))
        options |= {**dict.fromkeys(off, False), "contrast_mode": "hinge", "device": device}
        options |= {"sample_negs_locally": local, "sample_negs_locally_same_everywhere": local}
        options |= {"either_pos_or_neg_update": local, "negative_samples": 1 if local else NEGATIVES}
        losses = [
            theirs.ContrastiveLoss(SimpleNamespace(**options), CHANNELS, CHANNELS, STEPS) for _ in range(1 + local)
        ]

        def total(z, losses=losses):
            if len(losses) == 1:
                return losses[0](z, z)[0]
            return losses[0](z, z.clone().detach())[0] + losses[1](z.clone().detach(), z)[0]

        found |= record(total, losses, draws, case)
        torch.tensor = tensor
    torch.randint, torch.zeros, torch.ones = randint, zeros, ones
    np.savez_compressed(Path(__file__).with_name("patches.npz"), **found)


class _OnCpu:
    def __init__(self, value):
        self.value = value

    def to(self, _):
        return self.value


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
