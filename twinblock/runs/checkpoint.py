"""Checkpoints: safetensors with a checksum, written so that a crash at any moment leaves a good one.

A file holds named tensors and a JSON text, never code. `save` writes beside the target, flushes to disk and renames;
the one before is kept. `recover` finds the newest that is whole.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from twinblock.core.errors import InputError, one_line
from twinblock.core.files import replacing

log = logging.getLogger(__name__)

FRESH, LAST, PREVIOUS = "fresh.safetensors", "last.safetensors", "previous.safetensors"


STATE = ("momentum", "momentum_buffer", "exp_avg", "exp_avg_sq", "step")  # what optimizers keep of a parameter


class Fingerprint(BaseModel):
    """Which images a run trains on."""

    images: int
    digest: str


class Meta(BaseModel, extra="allow"):
    """What a file says of itself beside its tensors."""

    step: Annotated[int, Field(ge=0, le=2**53)] = 0  # steps taken
    data: Fingerprint | None = None
    classes: Annotated[int, Field(ge=1, le=65_536)] | None = None  # of the labels that were trained on
    epoch_steps: Annotated[int, Field(ge=1, le=2**53)] = 1
    config: str | None = None


class Damaged(InputError):
    """A file that is no whole checkpoint of ours."""


def write(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write one file atomically. Raises InputError when the disk refuses; an older file of that name stays."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(meta, sort_keys=True)
    try:
        with replacing(path) as file:
            mode = os.fstat(file.fileno()).st_mode
            save_file(tensors, Path(file.name), {"twinblock": text, "sha256": _digest(tensors, text)})
            os.chmod(file.name, mode)  # safetensors lets only the owner read, whatever the umask says
    except (InputError, SafetensorError) as error:
        why = " ".join(str(error).split()).removeprefix(f"cannot write {path}: ")
        raise InputError(
            f"cannot write {path}: {why}; what was saved before is untouched: mend that, and give the command again"
        ) from None


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read and verify one file. Raises Damaged, with the reason, unless it is whole and ours."""
    try:
        with safe_open(path, framework="pt") as file:
            head = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
        raise Damaged(f"{path} is not a readable checkpoint ({one_line(error)})") from None
    if "twinblock" not in head or "sha256" not in head:
        raise Damaged(f"{path} was not written by twinblock")
    if _digest(tensors, head["twinblock"]) != head["sha256"]:
        raise Damaged(f"{path} is damaged: its checksum does not match")
    try:
        return tensors, Meta.model_validate(json.loads(head["twinblock"])).model_dump(exclude_unset=True)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} says nothing sensible of itself ({one_line(error)})") from None


def save(folder: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write the newest checkpoint of a run and keep the one before it."""
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}") from None
    write(folder / FRESH, tensors, meta)
    if (folder / LAST).exists():
        os.replace(folder / LAST, folder / PREVIOUS)
    os.replace(folder / FRESH, folder / LAST)


def newest(folder: Path, *better: Path) -> tuple[Path, tuple[dict[str, Tensor], dict[str, Any]]]:
    """The newest whole checkpoint of a run, and what it holds; of the `better` files the first that is whole.

    Damaged ones are reported and skipped. Raises InputError where there is none.
    """
    problems = []
    for path in (*better, *(folder / name for name in (FRESH, LAST, PREVIOUS))):
        if path.is_file():
            try:
                checkpoint = read(path)
            except Damaged as error:
                problems.append(error)
            else:
                for problem in problems:
                    log.warning(f"{problem}; {path} is taken instead")
                return path, checkpoint
    nothing = InputError(f"{folder.parent} has no checkpoint yet; let the run get to its first one")
    raise problems[0] if problems else nothing


def recover(folder: Path, not_of_this_run: Callable[[Mapping[str, Any]], str] = lambda meta: "") -> list[str]:
    """Make `last` the newest whole checkpoint, if there is one; set damaged files aside, with a line for each.

    `not_of_this_run(meta)`: why a file with this metadata is another run's; empty where it is not. A crash between the
    two renames of `save` leaves the newest under its first name: it is tried first.
    """
    complaints: list[str] = []
    for name in (FRESH, LAST, PREVIOUS):
        path = folder / name
        if path.exists():
            try:
                if why := not_of_this_run(read(path)[1]):
                    raise Damaged(f"{path} is of another run ({why})")
            except Damaged as error:
                os.replace(path, path.with_name(name + ".damaged"))
                complaints.append(str(error))
            else:
                os.replace(path, folder / LAST)
                break
    return complaints


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, by what follows."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def fill(
    module: torch.nn.Module,
    tensors: Mapping[str, Tensor],
    file: Path,
    prefix: str = "",
    shared: Collection[str] = (),
) -> None:
    """Load into a module the tensors below `prefix`, but for those that it shares with one that was filled before.

    Raises InputError for tensors of another architecture.
    """
    wanted = {name: t for name, t in module.state_dict().items() if name not in shared}
    stored = below(prefix, tensors)
    for name in sorted(wanted.keys() | stored.keys()):
        there, here = (tuple(t[name].shape) if name in t else "missing" for t in (stored, wanted))
        if there != here:
            raise InputError(
                f"{file} holds another architecture than the run's config.yaml: {prefix}{name} is {there} there, "
                f"{here} by the config"
            )
    module.load_state_dict(stored, strict=not shared)


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer by parameter number and name; its groups are rebuilt from the config."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{key}": value for i, entry in state.items() for key, value in entry.items() if value is not None}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimizer the state that `flatten_optimizer` took, in the memory layout of its parameters.

    Fused optimizers walk through both side by side: those of CUDA refuse another layout, those of the CPU misread it.
    Raises ValueError for what is no state of this optimizer.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        i, key = name.split(".", 1)
        if not i.isdecimal() or int(i) >= len(params) or key not in STATE:
            raise ValueError(f"{name} is of no parameter")
        p = params[int(i)]
        if tensor.shape not in (p.shape, ()):
            raise ValueError(f"{name} is {tuple(tensor.shape)} for a parameter of {tuple(p.shape)}")
        laid_out = torch.empty_like(p).copy_(tensor) if tensor.shape == p.shape else tensor
        state.setdefault(int(i), {})[key] = laid_out
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
