"""One of several processes that compute features: reads its job from the standard input, and writes to the run."""

import json
import sys
from pathlib import Path

from twinblock.core.errors import InputError
from twinblock.evaluation.embedding import Subject
from twinblock.evaluation.patches import Patches, write_parts
from twinblock.evaluation.stored import keep_parts


def main() -> None:
    """The job: which encoder of which run looks at which images, as `Subject.of` takes it; which parts it computes;
    and the file that their patches go to, or null for pooled features.

    Whenever some images are done, their number is a line of the output; `part N` tells that the part that begins with
    image N is written. Without a reader, a BrokenPipeError ends it.
    """
    job = json.load(sys.stdin)
    subject = Subject.of(**job["subject"])
    if job["file"] is None:
        keep_parts(subject.run, subject.encoder, subject.images, job["parts"], advance=_tell, **subject.seen)
    else:
        file, patches = Path(job["file"]), Patches(subject.encoder, subject.config.image_shape)
        note = lambda start: _tell(f"part {start}")  # noqa: E731
        write_parts(file, patches, subject.images, job["parts"], note=note, advance=_tell, **subject.seen)


def _tell(what: object) -> None:
    print(what, flush=True)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
