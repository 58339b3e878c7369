"""One of several processes that compute features: reads its job from the standard input, and writes to the run."""

import json
import sys

from twinblock.core.errors import InputError
from twinblock.evaluation.embedding import Subject
from twinblock.evaluation.stored import keep_parts


def main() -> None:
    """The job: which encoder of which run looks at which images, as `Subject.of` takes it, and which parts it computes.

    Whenever some images are done, their number is a line of the output. Without a reader, a BrokenPipeError ends it.
    """
    job = json.load(sys.stdin)
    subject = Subject.of(**job["subject"])
    keep_parts(subject.run, subject.encoder, subject.images, job["parts"], advance=_tell, **subject.seen)


def _tell(count: int) -> None:
    print(count, flush=True)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
