"""`export`: the encoder of a run as a folder that loads elsewhere."""

import json
from pathlib import Path

from torch import nn

from twinblock.core.errors import InputError, nearest
from twinblock.core.files import expanded, new_folder
from twinblock.core.settings import own_settings
from twinblock.core.version import __version__
from twinblock.exports.forms import FORMS, Exported
from twinblock.exports.subject import Subject, subject_of
from twinblock.runs.run import Run


@own_settings()
def export(
    run: Run | str | Path, to: str, *, out: str | Path | None = None, encoder: nn.Module | None = None
) -> list[str]:
    """Write the trained encoder as a folder that another library loads; gives the lines of Python that load it.

    `to`: `timm`, a local folder of timm; `torchvision`, a state dict; `hf`, a folder for AutoModel of transformers;
    `onnx`, a file for onnxruntime and others (needs the extra `onnx`); `program`, a torch.export program; `weights`, a
    state dict of the run's own network. Of a classifier that `finetune` wrote, the scores of its classes are exported.
    `encoder`: the module that the run was made with.
    The features are checked: within 1e-4 of the encoder's own, on random images. The folder also says in README.md and
    preprocessing.json how an image is prepared.
    `out`: a new folder, by default `export-FORM` in the run, which is replaced. It is written whole or not at all.
    Raises InputError for a form that cannot hold this network, with those that can, and for a folder that is there.
    """
    if to not in FORMS:
        hint = f"; did you mean {near[0]}?" if (near := nearest(to, FORMS)) else ""
        raise InputError(f"--to {to}: should be {', '.join(FORMS)}{hint}")
    run = Run.open(run, encoder=encoder)
    own = run.path / f"export-{to}"
    folder = own if out is None else expanded(out)
    with new_folder(folder, replace=folder == own) as partial:
        subject = subject_of(run, folder)
        exported = FORMS[to](subject, partial)
        seen = {
            **subject.preprocessing(),
            subject.gives: subject.width,
            **({"classes": list(subject.classes), "several": subject.several} if subject.classes else {}),
            "difference": exported.difference,
        }
        (partial / "preprocessing.json").write_text(json.dumps(seen, indent=2) + "\n", encoding="utf-8")
        readme = _readme(subject, to, exported)
        (partial / "README.md").write_bytes(readme.encode("utf-8", "backslashreplace"))
    return list(exported.lines)


def _readme(subject: Subject, to: str, exported: Exported) -> str:
    seen = subject.preprocessing()
    steps = "\n".join(f"{i}. {step[0].upper()}{step[1:]}." for i, step in enumerate(seen["steps"], 1))
    imports = "\n".join(f"import {name}" for name in exported.imports)
    mean, std = (", ".join(f"{value:.6g}" for value in seen[name]) for name in ("mean", "std"))
    kind, size, width = subject.kind, seen["size"], subject.width
    note = f"\n{exported.note}\n" if exported.note else ""
    if subject.classes:
        note += f"\nClasses, in order: {', '.join(subject.classes)}.\n"
    if subject.several:
        note += "\nAn image may be of several classes: the sigmoid of a logit is the probability of its class.\n"
    return f"""# An image {"encoder" if subject.head is None else "classifier"}, for {to}

{kind} at {size} px, trained by twinblock {__version__}. It gives {width} {subject.gives} an image.

```python
{imports}

{chr(10).join(exported.lines)}
```
{note}
`images` are prepared like this:

{steps}

Mean: {mean}. Std: {std}.

The {subject.gives} were compared with the run's own when this was written. They differ by {exported.difference:.1e} at
most. `preprocessing.json` holds the same for programs.
"""
