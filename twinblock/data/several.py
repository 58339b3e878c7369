"""Several sources that are one set."""

import os
from collections.abc import Iterator, Sequence
from itertools import chain

from twinblock.core.errors import InputError
from twinblock.data.decode import File
from twinblock.data.indicators import Indicators, joined
from twinblock.data.layout import few, said
from twinblock.data.store import Encoded, Item, digest

Part = tuple[str, Encoded]  # one of several sources


def together(shown: str, parts: Sequence[Part], trained: Sequence[Part]) -> Encoded:
    """Sources one after the other, with the classes of the training images first; `shown`: their names."""
    labelled = [(one, part) for one, part in parts if part.classes_from]
    if any(part.several for _, part in labelled):
        return _of_several_classes(shown, parts, trained)
    if bare := [one for one, part in labelled if part.classes is None] if any(p.classes for _, p in labelled) else []:
        raise InputError(
            f"data={shown}: {few(bare)} numbers its classes and others name them; data.labels=none leaves them out"
        )
    known = sorted({name for _, part in trained for name in part.classes or ()})
    classes = known + sorted({name for _, part in parts for name in part.classes or ()} - set(known))
    place = {name: i for i, name in enumerate(classes)}

    def items() -> Iterator[Item]:
        for one, part in parts:
            for name, file, label in part.items():
                number = place[part.classes[label]] if part.classes and label >= 0 else label
                yield os.path.join(one, name), file, number

    def sample() -> Iterator[File]:
        return chain.from_iterable(part.sample() for _, part in parts)

    key = digest("joined", [(one, part.key) for one, part in parts], *classes)
    froms = list(dict.fromkeys(part.classes_from for _, part in labelled))
    count = sum(part.count for _, part in parts)
    told = None if not labelled else said(classes) if "folder" in str(froms[0]) else froms[0]
    return Encoded(shown, key, count, items, sample, tuple(classes) or None, told)


def _of_several_classes(shown: str, parts: Sequence[Part], trained: Sequence[Part]) -> Encoded:
    """Sources of several classes an image, one after the other, with the classes of the training images first."""
    lists = [part.several for _, part in parts if part.several is not None]
    if others := [one for one, part in parts if part.several is None]:
        raise InputError(
            f"data={shown}: {few(others)} has no lists of classes as others have; data.labels=none leaves those out"
        )

    def items() -> Iterator[Item]:
        start = 0
        for (one, part), of in zip(parts, lists, strict=True):
            for name, file, row in part.items():
                yield os.path.join(one, name), file, start + row
            start += len(of().matrix)

    def several() -> Indicators:
        first = [part.several() for _, part in trained if part.several is not None]
        return joined([of() for of in lists], joined(first).classes or () if first else ())

    key = digest("joined", [(one, part.key) for one, part in parts])
    sample = lambda: chain.from_iterable(part.sample() for _, part in parts)  # noqa: E731
    count = sum(part.count for _, part in parts)
    return Encoded(shown, key, count, items, sample, None, parts[0][1].classes_from, several)
