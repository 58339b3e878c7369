"""Writes `solo_learn.npz`: what solo-learn 1.0.2 (MIT) gives for DINO and SwAV, value and gradient, in float64.

    pip install --no-deps solo-learn==1.0.2 && python tests/golden/solo_learn.py

Of its package only the files of these losses are read; the rest asks for libraries that they do not need.
"""

import importlib.util
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F


def module(path: str):
    """One file of solo-learn as a module."""
    spec = importlib.util.find_spec("solo")
    assert spec is not None and spec.origin is not None, "solo-learn is not installed"
    one = importlib.util.spec_from_file_location(Path(path).stem, Path(spec.origin).parent / path)
    assert one is not None and one.loader is not None
    loaded = importlib.util.module_from_spec(one)
    one.loader.exec_module(loaded)
    return loaded


def dino(out: dict[str, np.ndarray]) -> None:
    """Five crops, of which the first two are targets; three steps, so that centre and temperature have moved."""
    generator = torch.Generator().manual_seed(0)
    loss = module("losses/dino.py").DINOLoss(12, 0.04, 0.07, 3, 5, num_large_crops=5).double()
    for epoch in range(3):
        loss.epoch = epoch
        student = torch.randn(5 * 6, 12, generator=generator, dtype=torch.float64).tanh().requires_grad_()
        teacher = torch.randn(2 * 6, 12, generator=generator, dtype=torch.float64).tanh()
        value = loss(student, teacher)
        value.backward()
        arrays = {"student": student.detach(), "teacher": teacher, "value": value.detach(), "gradient": student.grad}
        out |= {f"dino/{epoch}/{name}": x.numpy() for name, x in arrays.items()}
        out[f"dino/{epoch}/centre"] = loss.center[0].numpy().copy()


def swav(out: dict[str, np.ndarray]) -> None:
    """Two views of 6 images, 5 prototypes; without a queue and with one of 8 rows, which both views share here."""
    generator = torch.Generator().manual_seed(1)
    codes, compare = module("utils/sinkhorn_knopp.py").SinkhornKnopp(3, 0.05), module("losses/swav.py").swav_loss_func
    z = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64).requires_grad_()
    prototypes = torch.randn(5, 4, generator=generator, dtype=torch.float64).requires_grad_()
    queue = F.normalize(torch.randn(8, 4, generator=generator, dtype=torch.float64), dim=1)
    out |= {"swav/z": z.detach().numpy(), "swav/prototypes": prototypes.detach().numpy(), "swav/queue": queue.numpy()}
    for name, rows in (("alone", queue[:0]), ("queued", queue)):
        unit = F.normalize(prototypes, dim=1)
        scores = [F.normalize(view, dim=1) @ unit.T for view in z]
        assigned = [codes(torch.cat([s.detach(), (rows @ unit.T).detach()]))[: len(s)] for s in scores]
        value = compare(scores, assigned, 0.1)
        gradients = torch.autograd.grad(value, [z, prototypes])
        found = {"codes": torch.stack(assigned), "value": value.detach(), "of_z": gradients[0], "of_w": gradients[1]}
        out |= {f"swav/{name}/{key}": x.numpy() for key, x in found.items()}


if __name__ == "__main__":
    arrays: dict[str, np.ndarray] = {}
    dino(arrays)
    swav(arrays)
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **arrays)
