"""Writes `contrast.npz`: contrastive losses by published code, value and gradient, in float64.

    git clone https://github.com/vturrisi/solo-learn && git -C solo-learn checkout 9187ea3        (MIT)
    git clone https://github.com/HobbitLong/SupContrast && git -C SupContrast checkout 66a8fe5    (BSD)
    pip install --no-deps lightly==1.6.0                                                          (MIT)
    python tests/golden/contrast.py solo-learn SupContrast

Of solo-learn only the files of the losses are read; the rest asks for libraries that they do not need.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F

DRAWN = np.random.Generator(np.random.PCG64(22))
Arrays = dict[str, np.ndarray]


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def one_process() -> None:
    """What solo-learn's losses gather with, on one process."""
    misc = ModuleType("solo.utils.misc")
    vars(misc).update(concat_all_gather_no_grad=torch.Tensor.detach, gather=lambda x: x, get_rank=lambda: 0)
    sys.modules |= {"solo": ModuleType("solo"), "solo.utils": ModuleType("solo.utils"), "solo.utils.misc": misc}


def draw(n: int, d: int, leaf: bool = True) -> torch.Tensor:
    return torch.tensor(DRAWN.normal(size=(n, d)), requires_grad=leaf)


def note(out: Arrays, group: str, loss: torch.Tensor, leaves: dict[str, torch.Tensor], **given) -> None:
    out[f"{group}/loss"] = loss.detach().numpy()
    for (name, x), gradient in zip(leaves.items(), torch.autograd.grad(loss, [*leaves.values()]), strict=True):
        out[f"{group}/{name}"], out[f"{group}/g_{name}"] = x.detach().numpy(), gradient.numpy()
    out |= {f"{group}/{name}": np.asarray(x) for name, x in given.items()}


def moco_v3(out: Arrays, solo: Path) -> None:
    """Both directions; predictions p and keys k of two views."""
    loss = module(solo / "solo/losses/mocov3.py").mocov3_loss_func
    for case, n, d, temperature in (("a", 6, 5, 1.0), ("b", 9, 16, 0.2)):
        p1, p2, k1, k2 = draw(n, d), draw(n, d), draw(n, d, False), draw(n, d, False)
        both = loss(p1, k2, temperature) + loss(p2, k1, temperature)
        note(out, f"moco_v3/{case}", both, {"p1": p1, "p2": p2}, k1=k1, k2=k2, T=temperature)


def nnclr(out: Arrays, solo: Path) -> None:
    """The mean of both directions; lightly looks up the neighbours n of the projections z."""
    from lightly.models.modules.nn_memory_bank import NNMemoryBankModule

    loss = module(solo / "solo/losses/nnclr.py").nnclr_loss_func
    for case, n, d, size, temperature in (("a", 6, 5, 20, 0.1), ("b", 9, 16, 13, 0.5)):
        p1, p2, z1, z2 = draw(n, d), draw(n, d), draw(n, d, False), draw(n, d, False)
        queue, bank = F.normalize(draw(size, d, False), dim=1), NNMemoryBankModule((size, d))
        bank.bank, bank.bank_ptr = queue.clone(), torch.zeros(1, dtype=torch.long)
        n1, n2 = bank(z1), bank(z2)
        both = loss(n1, p2, temperature) / 2 + loss(n2, p1, temperature) / 2
        given = {"z1": z1, "z2": z2, "queue": queue, "T": temperature}
        note(out, f"nnclr/{case}", both, {"p1": p1, "p2": p2}, **given)


def dcl(out: Arrays) -> None:
    from lightly.loss.dcl_loss import DCLLoss

    for case, n, d, temperature in (("a", 6, 5, 0.1), ("b", 9, 16, 0.5)):
        z1, z2 = draw(n, d), draw(n, d)
        note(out, f"dcl/{case}", DCLLoss(temperature)(z1, z2), {"z1": z1, "z2": z2}, T=temperature)


def sup_con(out: Arrays, folder: Path) -> None:
    """Its factor is the temperature divided by `base_T`."""
    cls = module(folder / "losses.py").SupConLoss
    for case, d, temperature, labels in (
        ("a", 5, 0.1, [0, 1, 0, 2, 2, 2]),
        ("b", 16, 0.5, [0, 1, 2, 3, 4, 5, 6, 7, 0]),
    ):
        z1, z2 = draw(len(labels), d), draw(len(labels), d)
        units = torch.stack([F.normalize(z, dim=1) for z in (z1, z2)], 1)
        loss = cls(temperature)(units, torch.tensor(labels))
        given = {"T": temperature, "base_T": 0.07, "labels": labels}
        note(out, f"sup_con/{case}", loss, {"z1": z1, "z2": z2}, **given)


if __name__ == "__main__":
    arrays: Arrays = {}
    one_process()
    moco_v3(arrays, Path(sys.argv[1]))
    nnclr(arrays, Path(sys.argv[1]))
    dcl(arrays)
    sup_con(arrays, Path(sys.argv[2]))
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **arrays)
