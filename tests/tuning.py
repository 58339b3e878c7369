"""A run to fine-tune, and its fine-tuning, as small as they can be."""

from pathlib import Path

from tiny import images

import twinblock

SMALL = [
    *("encoder.kind=resnet10", "encoder.width=8", "encoder.stem=cifar", "data.batch=16", "train.length=2steps"),
    *("projector.dims=[16,8]", "train.precision=fp32"),
]


def pretrained(home: Path) -> twinblock.Run:
    return twinblock.pretrain("simclr", data=images(60), out=home / "run", overrides=SMALL, quiet=True)


def tuned(run, out, data=None, **how):
    how = {"fraction": [0.25, 1], "seeds": 2, "epochs": 1, **how}
    return twinblock.finetune(run, images(60) if data is None else data, out=out, quiet=True, **how)
