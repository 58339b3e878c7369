"""Files on a web server or in a bucket, whole or in parts; requests that fail are made again."""

import re
import time
from typing import Any

from twinblock.core.errors import InputError, one_line
from twinblock.data.store import say_once

PROTOCOLS = {"http": "twinblock[remote]", "https": "twinblock[remote]"}  # and what to install for each
PROTOCOLS |= {"s3": "s3fs", "gs": "gcsfs", "abfs": "adlfs", "hf": "huggingface_hub"}
WAITS = 0.5, 1, 2, 4, 8, 16, 32  # seconds between the tries of a request
FIRST = 3  # of them, of a server that has not answered yet
SILENT = 30  # seconds without a byte, after which a request has failed


class Forbidden(InputError):
    """A server does not give this file; some say so of files that are not there."""


def is_url(source: object) -> bool:
    return isinstance(source, str) and re.match(r"[a-z][a-z0-9+.-]*://", source, re.IGNORECASE) is not None


class Server:
    """Files below a URL. A request that fails is made again, for a minute; then InputError is raised."""

    def __init__(self, url: str):
        protocol, _, rest = url.partition("://")
        protocol = protocol.lower()
        if protocol not in PROTOCOLS or "::" in rest:  # to fsspec, `::` puts one protocol behind another
            raise InputError(f"data source {url!r}: a URL begins with one of {', '.join(PROTOCOLS)}, and has no '::'")
        if protocol in ("http", "https") and ("?" in rest or "#" in rest):
            raise InputError(f"data source {url!r}: the URL of a folder ends without '?' and '#'")
        self.url, self.answered = f"{protocol}://{rest}".rstrip("/"), False
        try:
            from fsspec.core import url_to_fs

            self.files, self.path = url_to_fs(self.url, **_options(protocol))
        except ImportError:
            raise InputError(f"data source {url!r}: pip install {PROTOCOLS[protocol]!r}, which reads it") from None

    def content(self, name: str, start: int | None = None, end: int | None = None) -> bytes | None:
        """A file, or its bytes from `start` to `end`; None: there is no such file."""
        for wait in (*(WAITS if self.answered else WAITS[:FIRST]), None):
            try:
                content = self.files.cat_file(f"{self.path}/{name}", start=start, end=end)
                self.answered = True
                if start is None or end is None or len(content) == end - start:
                    return content
                why = f"{len(content):,} bytes came where {end - start:,} were asked for"
            except FileNotFoundError:
                return None
            except Exception as error:  # of as many kinds as there are servers
                why = one_line(error) or type(error).__name__
                if isinstance(error, PermissionError) or getattr(error, "status", None) in (401, 403):
                    raise Forbidden(f"{self.url}/{name} may not be read ({why}): ask for access") from error
            if wait is not None:
                if self.answered and wait > 1:
                    say_once(f"{self.url} does not answer as it should ({why}); it is asked again for a minute")
                time.sleep(wait)
        raise InputError(f"{self.url}/{name} cannot be read ({why}); give the command again when it can")

    def serves_parts(self, name: str) -> bool:
        """Whether a part of a file can be asked for. One that knows none would send all of it each time."""
        for wait in (*WAITS[:FIRST], None):
            try:
                with self.files.open(f"{self.path}/{name}", "rb", block_size=2**10, cache_type="none") as file:
                    file.seek(1)
                    return len(file.read(1)) == 1
            except ValueError:  # fsspec's, of an answer that is no part; or of a file that can only be read on and on
                return False
            except Exception:
                time.sleep(wait or 0)
        return True  # whatever it is, the next request says it


def _options(protocol: str) -> dict[str, Any]:
    """Of fsspec: by default a request over HTTP ends after five minutes in all, however much has come."""
    if protocol not in ("http", "https"):
        return {}
    from aiohttp import ClientTimeout

    return {"client_kwargs": {"timeout": ClientTimeout(total=None, sock_connect=SILENT, sock_read=SILENT)}}
