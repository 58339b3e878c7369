"""What a run starts from: `encoder.weights` becomes tensors, and what the config keeps of them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from twinblock.assembly.build import Objects
from twinblock.assembly.resolve import resolve
from twinblock.config.explain import OTHER_WEIGHTS
from twinblock.config.schema import Config
from twinblock.core.errors import InputError
from twinblock.core.files import expanded
from twinblock.data import Images
from twinblock.nn.encoders import Encoder
from twinblock.nn.fitting import start_from
from twinblock.nn.weights import Weights, full_name, published, read_weights, sha256
from twinblock.runs import checkpoint
from twinblock.runs.run import Run

Start = Callable[[Encoder], None]  # gives an encoder its first weights, and notes that say what they are


def beginning(
    config: Config, images: Images, device: torch.device, objects: Objects | None = None
) -> tuple[Config, Start | None]:
    """The resolved config of a run that begins, and what gives its encoder the weights of `encoder.weights`.

    A run's weights bring its network; weights that say with which mean and std they were trained bring these where
    `data.mean` and `data.std` are auto. The config keeps their name and the SHA-256 of their file. Raises InputError
    where there are no such weights.
    """
    if config.encoder.weights is None:
        return resolve(config, images, device, objects), None
    resolved = resolve(_network_of(config), images, device, objects)
    weights = find(resolved)
    seen: dict[str, Any] = {}
    for name in ("mean", "std"):
        values = getattr(weights, name)
        if getattr(config.data, name) == "auto" and values is not None and len(values) == resolved.image_shape[0]:
            seen[name] = values
    kept = {"weights_sha256": weights.digest}
    if resolved.encoder.weights == "pretrained" and not resolved.encoder.kind.startswith("torchvision/"):
        kept["weights"] = f"timm:{full_name(resolved.encoder.kind, None)}"
    parts = {"data": resolved.data.model_copy(update=seen), "encoder": resolved.encoder.model_copy(update=kept)}
    return resolved.model_copy(update=parts), _start(resolved, weights, f"; {_moments(config, weights, seen)}")


def going_on(run: Run, config: Config) -> Start | None:
    """What gives the encoder of a begun run its first weights: those that it has kept, whatever their source holds now.

    A run that was killed before it kept any reads them again, and the file must be the same.
    """
    if config.encoder.weights is None:
        return None
    return lambda encoder: None if run.fill_started(encoder) else _start(config, find(config))(encoder)


def find(config: Config) -> Weights:
    """The weights that a resolved config names. Raises InputError for none, and for another file than it says."""
    e = config.encoder
    assert e.weights is not None
    if e.weights == "pretrained" or e.weights.startswith("timm:"):
        if ":" in e.kind:
            raise InputError(f"encoder.weights={e.weights} is for networks by name; {OTHER_WEIGHTS}")
        found = published(e.kind, None if e.weights == "pretrained" else e.weights.removeprefix("timm:"))
    elif (path := expanded(e.weights)).is_dir():
        found = _of_run(path)
    elif path.is_file():
        found = read_weights(path)
    else:
        raise InputError(f"encoder.weights={e.weights}: there is no such file or run; {OTHER_WEIGHTS}")
    if e.weights_sha256 not in (None, found.digest):
        raise InputError(
            f"encoder.weights={e.weights} is not the file that this run began with or asks for: its SHA-256 is "
            f"{found.digest[:12]}…, not {(e.weights_sha256 or '')[:12]}…; put that file back, or choose another out"
        )
    return found


def _start(config: Config, weights: Weights, moments: str = "") -> Start:
    def start(encoder: Encoder) -> None:
        first, *others = start_from(encoder, weights, config.image_shape[0], config.encoder.stem)
        encoder.notes += (first + moments, *others)

    return start


def _network_of(config: Config) -> Config:
    """The config with what its weights say of the network, where it leaves that open."""
    e = config.encoder
    assert e.weights is not None
    path = expanded(e.weights)
    if path.is_dir():
        theirs = Run.open(path).config.encoder
        if e.kind == "auto" and ":" not in theirs.kind:
            found = {"kind": theirs.kind, "width": e.width or theirs.width}
            found |= {"stem": theirs.stem} if e.stem == "auto" else {}
        else:
            found = {"stem": theirs.stem} if e.stem == "auto" and e.kind == theirs.kind else {}
    else:
        name, dot, _ = e.weights.removeprefix("timm:").partition(".")
        found = {"kind": name} if e.kind == "auto" and e.weights.startswith("timm:") and dot else {}
    return config.model_copy(update={"encoder": e.model_copy(update=found)})


def _of_run(path: Path) -> Weights:
    """The trained weights of another run, or those of its last checkpoint."""
    run = Run.open(path)
    if run.failed:
        raise InputError(f"encoder.weights={path}: that run ended with {run.result['state']}; take another")  # type: ignore
    file, (tensors, _) = checkpoint.newest(run.checkpoints, run.path / "encoder.safetensors")
    if file.parent == run.checkpoints:
        tensors = checkpoint.below("encoder.", tensors)
    seen = run.config.data.seen
    return replace(Weights(tensors, str(path), sha256(file)), mean=seen["mean"], std=seen["std"])


def _moments(config: Config, weights: Weights, taken: dict[str, Any]) -> str:
    """What mean and std the images are seen with, in words."""
    if "mean" in taken or "std" in taken:
        return f"their own {' and '.join(f'data.{name}' for name in taken)}"
    if "auto" not in (config.data.mean, config.data.std):
        return "data.mean and data.std as given"
    if weights.mean is None:
        return "they do not say their mean and std: data.mean, data.std are as without them"
    return f"their mean and std are of {len(weights.mean)} channels: data.mean, data.std are as without them"
