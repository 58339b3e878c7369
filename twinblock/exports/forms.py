"""The forms of an export. Each writes its files into a folder and says how to load them and how to get features.

Each form checks the features that its library gives, and
raises InputError, which names the forms that work, where they are not the encoder's own.
"""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from twinblock.core.errors import InputError, first_line
from twinblock.core.seeding import seeded
from twinblock.exports.subject import Subject
from twinblock.nn.encoders import is_vit

WEIGHTS = "model.safetensors"
T = TypeVar("T")
ANYWHERE = "--to onnx, program or weights works"


@dataclass(frozen=True)
class Exported:
    """Lines of Python that load the folder and give features, what they import, and how far the features are off."""

    imports: tuple[str, ...]
    lines: tuple[str, ...]
    difference: float
    note: str = ""


def to_timm(subject: Subject, folder: Path) -> Exported:
    """timm's local folder: `config.json` and `model.safetensors`."""
    use, difference = _timm_folder(subject, folder, {})
    load = f"model = timm.create_model({f'local-dir:{subject.place}'!r}, pretrained=True).eval()"
    return Exported(("timm",), (load, f"{subject.gives} = {use}"), difference)


def to_hf(subject: Subject, folder: Path) -> Exported:
    """The same with what Hugging Face's wrapper of timm needs."""
    name = "TimmWrapperModel" if subject.head is None else "TimmWrapperForImageClassification"
    wrapper = {"model_type": "timm_wrapper", "architectures": [name]}
    if subject.several:
        wrapper["problem_type"] = "multi_label_classification"
    use, difference = _timm_folder(subject, folder, wrapper)
    output, auto = "model(images).pooler_output", "AutoModel"
    if subject.head is not None:
        output, auto = "model(images).logits", "AutoModelForImageClassification"
    elif use != "model(images)":
        output = "model(images).last_hidden_state" + use.removeprefix("model.forward_features(images)")
    load = f"model = transformers.{auto}.from_pretrained({str(subject.place)!r}).eval()"
    return Exported(("transformers",), (load, f"{subject.gives} = {output}"), difference)


def _timm_folder(subject: Subject, folder: Path, more: dict[str, Any]) -> tuple[str, float]:
    """Writes the folder; gives how its model gives the features, and how far these are off."""
    arguments, classes = _timm_arguments(subject), len(subject.classes)
    model = _built(subject, lambda: timm.create_model(subject.name, num_classes=classes, **arguments), "timm")
    _filled(subject, model, "timm")
    if subject.head is not None:
        _take_head(subject, model.get_classifier(), "timm")
    use, difference = _use(subject, model, "timm")
    save_file(_apart(model.state_dict()), folder / WEIGHTS, {"format": "pt"})
    seen = subject.preprocessing()
    config = {
        "architecture": subject.name,
        "num_classes": classes,
        "num_features": subject.encoder.width,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [seen["channels"], seen["size"], seen["size"]],
            "fixed_input_size": is_vit(subject.name),
            "mean": seen["mean"],
            "std": seen["std"],
            "interpolation": seen["interpolation"],
            "crop_pct": 1.0,
            "crop_mode": "center",
            "num_classes": classes,
            "pool_size": None,
            "first_conv": model.pretrained_cfg.get("first_conv"),
            "classifier": model.pretrained_cfg.get("classifier"),
        },
        **more,
    }
    if classes:
        config["label_names"] = list(subject.classes)
    if global_pool := arguments.get("global_pool"):
        config["global_pool"] = global_pool
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return use, difference


def _timm_arguments(subject: Subject) -> dict[str, Any]:
    """What timm's network needs beside its name to be the encoder's."""
    channels, size, _ = subject.run.config.image_shape
    arguments: dict[str, Any] = {"in_chans": channels} if channels != 3 else {}
    if subject.kind == "resnet10":
        arguments["layers"] = [1, 1, 1, 1]
    if is_vit(subject.name):  # its default is the class token, which no run has trained
        arguments |= {"img_size": size, "global_pool": "avg", "fc_norm": False}
    if (patch := subject.run.config.encoder.patch) is not None:
        arguments["patch_size"] = patch
    return arguments


def to_torchvision(subject: Subject, folder: Path) -> Exported:
    """A state dict of torchvision's network without its head."""
    model = _built(subject, lambda: torchvision.models.get_model(subject.name, weights=None), "torchvision")
    learned = {name.partition(".")[0] for name in subject.tensors}
    heads = [name for name, child in model.named_children() if list(child.parameters()) and name not in learned]
    if len(heads) != 1:
        raise _refused(subject, "torchvision", "its network has other parts")
    layers = [nn.Flatten()] if subject.head is None else [nn.Flatten(), copy.deepcopy(subject.head)]
    setattr(model, heads[0], layers[0] if len(layers) == 1 else nn.Sequential(*layers))
    _filled(subject, model, "torchvision")
    difference = subject.difference(_run(subject, lambda: model(subject.images), "torchvision"))
    if difference is None:
        raise _refused(subject, "torchvision", f"its {subject.gives} are not those of the run")
    save_file(_apart(model.state_dict()), folder / WEIGHTS, {"format": "pt"})
    new = "torch.nn.Flatten()"
    if subject.head is not None:
        linear = f"torch.nn.Linear({subject.head.in_features}, {subject.head.out_features})"
        new = f"torch.nn.Sequential({new}, {linear})"
    build = f"model = torchvision.models.get_model({subject.name!r}).eval(); model.{heads[0]} = {new}"
    load = f"model.load_state_dict({_loaded(subject)}); {subject.gives} = model(images)"
    return Exported(("safetensors.torch", "torch", "torchvision"), (build, load), difference)


def to_weights(subject: Subject, folder: Path) -> Exported:
    """A state dict with the names of the run's own network."""
    head = {} if subject.head is None else {f"classifier.{n}": t for n, t in subject.head.state_dict().items()}
    save_file(_apart({**subject.tensors, **head}), folder / WEIGHTS, {"format": "pt"})
    load = f"weights = {_loaded(subject)}"
    note = f"`module` is your own network ({subject.kind}). Features are the mean of its last map or tokens."
    return Exported(("safetensors.torch",), (load, "module.load_state_dict(weights, strict=False)"), 0.0, note)


def to_program(subject: Subject, folder: Path) -> Exported:
    """A torch.export program that takes any number of images."""
    program = _traced(subject)
    difference = subject.difference(_run(subject, lambda: program.module()(subject.images), "program"))
    if difference is None:
        raise _refused(subject, "program", f"its {subject.gives} are not those of the run")
    torch.export.save(program, folder / "encoder.pt2")
    load = f"encoder = torch.export.load({str(subject.place / 'encoder.pt2')!r}).module()"
    return Exported(("torch",), (load, f"{subject.gives} = encoder(images)"), difference)


def to_onnx(subject: Subject, folder: Path) -> Exported:
    """An ONNX file that takes any number of images, checked by onnxruntime."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f'--to onnx needs {error.name}: pip install "twinblock[onnx]"') from None
    file, traced = folder / "encoder.onnx", _traced(subject)
    program = torch.onnx.export(
        traced, (), dynamo=True, verbose=False, input_names=["images"], output_names=[subject.gives]
    )
    assert program is not None
    program.save(file)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    parts = [session.run(None, {"images": part.numpy()})[0] for part in (subject.images[:1], subject.images[1:])]
    difference = subject.difference(torch.cat([torch.from_numpy(part) for part in parts]))
    if difference is None:
        raise _refused(subject, "onnx", f"its {subject.gives} are not those of the run")
    use = f"{subject.gives} = session.run(None, {{'images': images.numpy()}})[0]"
    load = f"session = onnxruntime.InferenceSession({str(subject.place / 'encoder.onnx')!r})"
    return Exported(("onnxruntime",), (load, use), difference)


def _loaded(subject: Subject) -> str:
    return f"safetensors.torch.load_file({str(subject.place / WEIGHTS)!r})"


FORMS: dict[str, Callable[[Subject, Path], Exported]] = {
    "timm": to_timm,
    "torchvision": to_torchvision,
    "hf": to_hf,
    "onnx": to_onnx,
    "program": to_program,
    "weights": to_weights,
}


def _traced(subject: Subject) -> Any:
    batch = torch.export.Dim("batch", min=1)
    try:
        with torch.no_grad():
            return torch.export.export(subject.module, (subject.images,), dynamic_shapes=({0: batch},))
    except Exception as error:  # whatever the tracer meets in a network of others
        raise InputError(
            f"{subject.kind} cannot be traced ({first_line(error)}); --to weights works, and load_encoder in Python"
        ) from None


def _built(subject: Subject, build: Callable[[], Any], library: str) -> Any:
    """The library's network; the parts that no run trains are the same every time."""
    if subject.own:
        raise _refused(subject, library, "a network of your own has no name there")
    try:
        with seeded(0):
            return build().eval()
    except Exception as error:  # names, arguments and sizes that a library refuses in ways of its own
        raise _refused(subject, library, first_line(error)) from None


def _filled(subject: Subject, model: nn.Module, library: str) -> None:
    """Load the encoder's weights; only parts behind the last block may keep what the library began with."""
    e = subject.run.config.encoder
    changes = [f"encoder.{name}={getattr(e, name)}" for name, usual in _USUAL if getattr(e, name) not in usual]
    try:
        missing, unexpected = model.load_state_dict(subject.tensors, strict=False)
    except RuntimeError:  # of other shapes
        missing, unexpected = [], ["shapes"]
    learned = {name.partition(".")[0] for name in subject.tensors}
    if unexpected or any(name.partition(".")[0] in learned for name in missing):
        raise _refused(subject, library, f"it has no network with {' and '.join(changes) or 'these weights'}")


_USUAL = (("stem", ("standard", "auto")), ("norm", ("batch", "sync")), ("width", (None,)))


def _take_head(subject: Subject, layer: Any, library: str) -> None:
    if not isinstance(layer, nn.Linear) or subject.head is None:
        raise _refused(subject, library, "its classifier is no linear layer there")
    layer.load_state_dict(subject.head.state_dict())


def _use(subject: Subject, model: Any, library: str) -> tuple[str, float]:
    """The expression that gives the encoder's features: the model itself, or a mean of its last map or tokens."""
    for use, features in _run(subject, lambda: list(_means(subject, model, subject.images)), library):
        if (difference := subject.difference(features)) is not None:
            return use, difference
    raise _refused(subject, library, f"its {subject.gives} are not those of the run")


def _means(subject: Subject, model: Any, images: Tensor) -> Iterator[tuple[str, Tensor]]:
    if subject.head is not None:  # scores, by the model alone
        yield "model(images)", model(images)
        return
    before, maps = "model.forward_features(images)", model.forward_features(images)
    yield "model(images)", model(images)
    if maps.ndim == 4:
        yield f"{before}.mean((2, 3))", maps.mean((2, 3))
        yield f"{before}.mean((1, 2))", maps.mean((1, 2))  # channels last, as in Swin
    if maps.ndim == 3:
        first = int(getattr(model, "num_prefix_tokens", 0))
        yield (f"{before}[:, {first}:].mean(1)" if first else f"{before}.mean(1)"), maps[:, first:].mean(1)


def _run(subject: Subject, forward: Callable[[], T], library: str) -> T:
    try:
        with torch.no_grad():
            return forward()
    except Exception as error:  # a network of others, of another size than it was built for
        raise _refused(subject, library, first_line(error)) from None


def _refused(subject: Subject, library: str, why: str) -> InputError:
    others = ANYWHERE if library != "program" and library != "onnx" else "--to weights works"
    return InputError(f"{subject.run.path} ({subject.kind}) cannot be exported to {library}: {why}; {others}")


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies: tensors that share memory cannot be saved."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
