"""Where remote files are read from: the allowed schemes, through fsspec and never a shell."""

from typing import Any

from fsspec.core import url_to_fs

from common.errors import DataError

# by scheme the library that fsspec needs; the extra `remote` has them all
SCHEMES = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "hf": "huggingface_hub",
    "https": "aiohttp",
    "http": "aiohttp",
}
_CONNECT, _SILENCE = 30, 60  # seconds until a connection counts as lost


class Store:
    """A folder elsewhere. For use by several threads."""

    def __init__(self, url: str) -> None:
        """
        Raises:
            DataError: another scheme, a chain of them, or a library that is not installed.
        """
        scheme, _, rest = url.partition("://")
        if scheme not in SCHEMES or "::" in url or not rest.strip("/"):
            raise DataError(
                f"{url!r} is refused: a data set elsewhere is named by "
                f"{', '.join(f'{name}://' for name in SCHEMES)} and its folder, and nothing else"
            )
        self.url, self._http = url.rstrip("/"), scheme in ("http", "https")
        try:
            # an instance of our own: shared ones remember what they listed before
            options = {"client_kwargs": {"timeout": _patience()}} if self._http else {}
            self._files, base = url_to_fs(self.url, skip_instance_cache=True, **options)
        except ImportError as error:
            raise DataError(
                f"{scheme}:// needs {SCHEMES[scheme]} ({error}): pip install 'eqdvae[remote]'"
            ) from None
        self._base = base.rstrip("/")

    def open(self, name: str, start: int) -> tuple[Any, int]:
        """A file opened for reading, and the byte it is at: `start`, or 0 where the server knows
        no ranges. Raises what the library raises, FileNotFoundError where there is no file."""
        path = f"{self._base}/{name}"
        if self._http:
            # streamed, for blocks would be a request each; the size only says not to ask for it
            headers = {"Accept-Encoding": "identity"}
            if start:
                headers["Range"] = f"bytes={start}-"
            file = self._files.open(path, block_size=0, size=1, headers=headers)
            return file, start if file.r.status == 206 else 0
        file = self._files.open(path, "rb", cache_type="none")
        file.seek(start)
        return file, start


def _patience() -> Any:
    """However long a file takes, as long as something arrives."""
    from aiohttp import ClientTimeout

    return ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=_SILENCE)
