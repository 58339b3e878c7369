"""Weights to start from: read from a file, or those that timm and torchvision publish for a network."""

import hashlib
import os
import socket
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from twinblock.core.errors import InputError, nearest, one_line

HUB_FILE = "model.safetensors"  # what timm's weights are called on the hub
ASKED, STALLED = 5.0, 30.0  # seconds for a first answer of a server, and between two pieces of a file
DEPTH = 6  # of dictionaries in a file, one in the other
CHUNK = 2**20


@dataclass(frozen=True)
class Weights:
    """Tensors by name, a nested one by its path with dots; what they are called, and the SHA-256 of their file.

    `mean`, `std`: what their network was trained with, of channels in [0, 1]; None where nothing says it.
    """

    tensors: Mapping[str, Tensor]
    source: str
    digest: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def read_weights(file: Path) -> Weights:
    """The tensors of a .safetensors file, or of one of torch's, of which nothing but tensors is read.

    Raises InputError for a file that cannot be read so.
    """
    try:
        if file.suffix == ".safetensors":
            tree: Any = load_file(file)
        else:
            tree = torch.load(file, map_location="cpu", weights_only=True)
        digest = sha256(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"encoder.weights: cannot read {file} ({one_line(error)})") from None
    except Exception as error:  # whatever torch raises for what is none of its files
        why = "it holds more than tensors, and nothing else is loaded" if "weights_only" in str(error) else ""
        raise InputError(
            f"encoder.weights: cannot read {file} ({why or one_line(error)}); save the network's state_dict() alone, "
            "with torch.save or as .safetensors"
        ) from None
    return Weights(dict(_flat(tree)), str(file), digest)


def published(kind: str, tag: str | None = None) -> Weights:
    """The weights that timm (`tag`: other ones than its first) or torchvision has for a network.

    They come from the cache or, if the machine has a network, are downloaded to it. Raises InputError where there are
    no such weights, or where they are neither here nor to be had; the line says which file to put where.
    """
    library, _, name = kind.rpartition("/")
    if library != "torchvision":
        return _of_timm(name, tag)
    if tag is not None:
        raise InputError(f"encoder.weights=timm:{tag} is for a network of timm, and encoder.kind={kind} is none")
    try:
        chosen: Any = torchvision.models.get_model_weights(name).DEFAULT  # type: ignore[attr-defined]
    except (ValueError, AttributeError):
        raise InputError(f"encoder.weights=pretrained: torchvision has no weights for {name}; give a file") from None
    file = _cached(Path(chosen.url).name)
    found = read_weights(_here(file, chosen.url, name))
    seen = chosen.transforms()
    return Weights(found.tensors, f"torchvision's {name} ({chosen.name})", found.digest, *map(_values, _moments(seen)))


def full_name(kind: str, tag: str | None) -> str:
    """timm's name of weights, `resnet18.a1_in1k`. `tag`: itself, its last part, or None for timm's first choice.

    Raises InputError where timm has no such weights.
    """
    name = kind.removeprefix("timm/")
    wanted = name if tag is None else tag if "." in tag else f"{name}.{tag}"
    known = timm.list_pretrained(f"{name}.*")
    if tag is None and known:
        return f"{name}.{timm.get_pretrained_cfg(name).tag}"  # type: ignore[union-attr]
    if wanted in known:
        return wanted
    if not known:
        raise InputError(f"encoder.weights: timm has no weights for {name}; give a file, or another encoder.kind")
    near = nearest(wanted, known, 3) or known[:5]
    raise InputError(f"encoder.weights: timm has no weights {wanted!r}; there are {', '.join(near)}")


def _of_timm(name: str, tag: str | None) -> Weights:
    full = full_name(name, tag)
    config: Any = timm.get_pretrained_cfg(full)
    places = [_cached(f"{full}.safetensors")]
    url = config.url
    if config.hf_hub_id:
        import huggingface_hub

        for file in (HUB_FILE, "pytorch_model.bin"):
            kept = huggingface_hub.try_to_load_from_cache(config.hf_hub_id, file)
            places += [Path(kept)] if isinstance(kept, str) else []
        url = huggingface_hub.hf_hub_url(config.hf_hub_id, HUB_FILE)
    places += [_cached(Path(config.url).name)] if config.url else []
    file = next((place for place in places if place.is_file()), None) or _here(places[0], url, full)
    found = read_weights(file)
    try:  # timm's own machinery turns names of others into those of its network
        own = timm.create_model(full, pretrained=True, pretrained_cfg_overlay={"state_dict": dict(found.tensors)})
    except (RuntimeError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"encoder.weights: {file} does not hold the weights of {full} ({one_line(error)})") from None
    moments = map(_values, (config.mean, config.std))
    return Weights(own.state_dict(), f"timm's {full}", found.digest, *moments)


def _here(file: Path, url: str, name: str) -> Path:
    """The file, downloaded if need be and if that is possible."""
    if file.is_file():
        return file
    try:
        _download(file, url)
    except (OSError, RuntimeError) as error:
        why = one_line(getattr(error, "reason", error))
        raise InputError(
            f"encoder.weights: {name} is not on this machine and cannot be downloaded ({why}): put {url} "
            f"there as {file}"
        ) from None
    return file


def _download(file: Path, url: str) -> None:
    """Raises OSError within seconds where there is no network."""
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        raise OSError("HF_HUB_OFFLINE is set")
    with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=ASKED):
        pass
    file.parent.mkdir(parents=True, exist_ok=True)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALLED)
    try:
        torch.hub.download_url_to_file(url, str(file), progress=False)
    finally:
        socket.setdefaulttimeout(before)


def _cached(name: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def _moments(seen: Any) -> tuple[Any, Any]:
    return getattr(seen, "mean", None), getattr(seen, "std", None)


def _values(given: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if given is None else tuple(float(value) for value in given)


def _flat(tree: Any, path: str = "", depth: int = DEPTH) -> Iterator[tuple[str, Tensor]]:
    """The tensors of dictionaries in dictionaries; other values are no weights."""
    if isinstance(tree, Tensor):
        yield path, tree
    elif isinstance(tree, Mapping) and depth:
        for name, value in tree.items():
            yield from _flat(value, f"{path}.{name}" if path else str(name), depth - 1)


def sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as content:
        while chunk := content.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
