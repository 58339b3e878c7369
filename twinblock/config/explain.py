"""What is wrong with a run, in one line that a person can read."""

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from twinblock.config.published import published
from twinblock.core.errors import nearest

# what other libraries call a field, and what it is here
ELSEWHERE = {
    "batch_size": "data.batch",
    "img_size": "data.size",
    "image_size": "data.size",
    "epochs": "train.length=10epochs",
    "max_epochs": "train.length=10epochs",
    "steps": "train.length=1000steps",
    "max_steps": "train.length=1000steps",
    "lr": "optim.lr",
    "learning_rate": "optim.lr",
    "wd": "optim.weight_decay",
    "warmup_epochs": "optim.warmup=10epochs",
    "backbone": "encoder",
    "arch": "encoder",
    "proj_hidden_dim": "projector.dims",
    "proj_output_dim": "projector.dims",
    "output_dir": "out",
    "checkpoint_dir": "out",
    "seed": "train.seed",
    "fp16": "train.precision",
    "amp": "train.precision",
    "drop_path_rate": "encoder.drop_path",
    "layer_wise_lr_decay": "optim.layer_decay",
    "freeze_backbone": "encoder.freeze=all",
    "freeze_layers": "encoder.freeze",
}
OTHER_WEIGHTS = (
    "encoder.weights is pretrained, timm:TAG, a .safetensors or .pth file, or the folder of a run; a module of your "
    "own starts from the weights it has"
)
PROCESSES = "every GPU has a process of its own: torchrun --nproc-per-node N -m twinblock pretrain ..."
READING = "images are packed once and read from there: no worker processes are needed"
# what other libraries have a field for, and what does it here
WITHOUT_FIELD = {
    **dict.fromkeys(("weights", "pretrained", "checkpoint", "ckpt_path", "init_weights"), OTHER_WEIGHTS),
    **dict.fromkeys(("devices", "gpus", "num_gpus", "num_nodes", "strategy", "accelerator", "device"), PROCESSES),
    **dict.fromkeys(("num_workers", "workers", "prefetch_factor", "pin_memory"), READING),
    **dict.fromkeys(("resume", "resume_from", "resume_from_checkpoint"), "the same command with the same out goes on"),
}


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """The first fault of a validation in one line: where, what, and the nearest valid word."""
    fault = error.errors(include_url=False)[0]
    location = [str(part) for part in fault["loc"]]
    # pydantic's path also names the kinds and types it tried; the user wrote fields and numbers only
    written = [p for i, p in enumerate(location) if _is_written(model, location[:i], p)]
    where = (prefix + ".".join(written)).rstrip(".")
    if fault["type"] == "extra_forbidden":
        where = prefix + ".".join([*written, location[-1]])
        fields = sorted({name for m in _models_at(model, location[:-1]) for name in m.model_fields})
        return unknown_field(where, fields, ELSEWHERE)
    # only plain values are shown: a tree may be billions of values in a few lines of YAML
    given = repr(fault["input"]) if isinstance(fault["input"], str | int | float | bool | None) else ""
    value = f" (got {given})" if given else ""
    if fault["type"] == "union_tag_not_found" and not isinstance(fault["input"], Mapping):
        return f"{where}: should be a mapping of fields{value}"
    if fault["type"] in ("union_tag_invalid", "union_tag_not_found"):
        tags = [t.strip("'") for t in fault.get("ctx", {}).get("expected_tags", "").split(", ") if t]
        given = fault.get("ctx", {}).get("tag")
        near = nearest(given, tags, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"{where}.kind: {'missing' if given is None else f'unknown kind {given!r}'}; {hint}" + (
            f"Known: {', '.join(tags)}" if tags else ""
        )
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if fault["type"] in ("model_type", "model_attributes_type", "dict_type"):
        message = "a mapping of fields"
    if fault["type"] == "tuple_type":
        message = f"a list, such as [{fault['input']}]" if given else "a list"
    if fault["type"] == "missing":
        return f"{where}: required, but missing{_in_recipes(location)}"
    if not where or fault["type"] == "value_error":
        if given and re.search(rf"(?<![\w.]){re.escape(given)}(?![\w.])", message):
            value = ""  # the message has it
        return f"{where}: {message}{value}" if where else message
    return f"{where}: should be {message}{value}" if fault["msg"].startswith("Input") else f"{where}: {message}{value}"


def _in_recipes(location: list[str]) -> str:
    """What recipes have in a field that is missing of a part of this kind, by pydantic's path `part, kind, field`."""
    found = published(*location) if len(location) == 3 else ""
    return f"; recipes have {found}" if found else ""


def unknown_field(where: str, fields: Iterable[str], elsewhere: Mapping[str, str] = MappingProxyType({})) -> str:
    """What is said of a field that there is not, with the nearest of those that there are.

    `elsewhere`: what other libraries' words for a field are here; they come before near words.
    """
    word, fields = where.rpartition(".")[2].lower().replace("-", "_"), list(fields)
    if elsewhere and word in WITHOUT_FIELD:
        return f"{where}: unknown field; {WITHOUT_FIELD[word]}"
    near = (where[: -len(word)] + field for field in nearest(word, fields, cutoff=0.5))
    here = elsewhere.get(word) or next(near, "")
    return f"{where}: unknown field; " + (f"did you mean {here}?" if here else f"known: {', '.join(fields)}")


def _models_at(model: type[BaseModel], path: list[str]) -> list[type[BaseModel]]:
    """The models that a path of pydantic's error leads to; kinds and numbers in it choose among them."""
    models = [model]
    for part in path:
        tagged = [m for m in models if part in _tags(m)]
        if tagged:
            models = tagged
        elif not part.isdigit():
            inner = [m.model_fields[part].annotation for m in models if part in m.model_fields]
            models = [m for annotation in inner for m in _models_in(annotation)]
    return models


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _tags(model: type[BaseModel]) -> tuple:
    return get_args(model.model_fields["kind"].annotation) if "kind" in model.model_fields else ()


def _is_written(model: type[BaseModel], path: list[str], part: str) -> bool:
    return part.isdigit() or any(part in m.model_fields for m in _models_at(model, path))
