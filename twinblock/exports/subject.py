"""What is exported: a trained network, how it sees images, and what it gives for a few of them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twinblock.core.errors import InputError
from twinblock.evaluation.classifier import head_of
from twinblock.nn.encoders import Encoder
from twinblock.nn.shallow import Shallow
from twinblock.runs.run import Run

TOLERANCE = 1e-4  # of features, absolute and relative: other libraries sum in another order
CHECKED = 3  # images


@dataclass(frozen=True)
class Subject:
    """A run with its encoder, float32 on the CPU in evaluation mode, and the name of the folder to be.

    A fine-tuned run has a linear layer behind it, `head`: then its scores of the classes are exported.
    """

    run: Run
    encoder: Encoder
    place: Path
    head: nn.Linear | None = None
    classes: tuple[str, ...] = ()
    several: bool = False  # an image may be of several classes

    @cached_property
    def kind(self) -> str:
        return self.run.config.encoder.kind

    @property
    def own(self) -> bool:
        """Whether the network is a module of the caller's own, which no library knows by name."""
        return ":" in self.kind

    @cached_property
    def name(self) -> str:
        """That of the network, as timm and torchvision have it."""
        return "resnet18" if self.kind == "resnet10" else self.kind.rpartition("/")[2]

    @cached_property
    def module(self) -> nn.Module:
        """Images in, features out, and nothing that a tracer stumbles over."""
        encoder = Shallow(self.encoder, len(self.encoder.widths))
        return (encoder if self.head is None else nn.Sequential(encoder, self.head)).eval()

    @property
    def gives(self) -> str:
        return "features" if self.head is None else "logits"

    @property
    def width(self) -> int:
        return self.encoder.width if self.head is None else self.head.out_features

    @cached_property
    def images(self) -> Tensor:
        """Normalised images to check with."""
        shape = self.run.config.image_shape
        return torch.randn(CHECKED, *shape, generator=torch.Generator().manual_seed(0))

    @cached_property
    def expected(self) -> Tensor:
        with torch.no_grad():
            features = self.encoder(self.images)
            return features if self.head is None else self.head(features)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return {name: tensor.detach().contiguous() for name, tensor in self.encoder.state_dict().items()}

    def difference(self, given: Tensor) -> float | None:
        """How far outputs are from the network's own at most; None where that is too far, or of another shape."""
        if given.shape != self.expected.shape or not torch.allclose(given, self.expected, TOLERANCE, TOLERANCE):
            return None
        return float((given - self.expected).abs().max())

    def preprocessing(self) -> dict[str, Any]:
        """How the encoder sees an image: the fields of `preprocessing.json`."""
        channels, size, _ = self.run.config.image_shape
        low, high = self.run.config.data.seen["value_range"]
        mean, std = (list(self.run.config.data.seen[name]) for name in ("mean", "std"))
        steps = [
            f"give the image {channels} channel{'s' if channels > 1 else ''}"
            + (", red, green and blue" if channels == 3 and high == 255 else ""),
            "cut out the largest square in its middle",
            f"resize it to {size} x {size} pixels, bilinear with antialiasing",
            f"subtract {low:g}, divide by {high - low:g}, and cut off what is below 0 or above 1",
            "subtract the mean of each channel and divide by its std",
            f"give float32 of shape (images, {channels}, {size}, {size})",
        ]
        seen = {"channels": channels, "size": size, "range": [low, high], "mean": mean, "std": std}
        return {**seen, "interpolation": "bilinear", "steps": steps}


def subject_of(run: Run, place: Path) -> Subject:
    """A run's encoder, ready to be exported. Raises InputError where it holds NaN or infinity."""
    head, names, several = head_of(run) or (None, (), False)
    subject = Subject(run, run.encoder().float().cpu().eval(), place, head, tuple(names), several)
    if not subject.expected.isfinite().all():
        raise InputError(f"the features of {run.path} hold NaN or infinity: has the encoder diverged?")
    return subject
