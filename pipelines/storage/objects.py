"""The objects under one prefix of a bucket (S3, Google Cloud Storage, Azure), by obstore: what a root on an object store rests on.

Invariant: ``create`` makes an object exactly once, for exactly one of several writers: the request says If-None-Match, and the store refuses the
others. If an answer is lost (a time-out, a reset connection, a 500 after the work was done), the request is sent again; if the store refuses that
one, the object is read back: with the bytes of this writer it is this writer's. Manifests carry a unique attempt, so no two writers' are equal.
Reads and writes of whole objects are atomic: nobody sees a part of one.

Every request is tried up to TRIES times, with growing pauses, unless the answer says that trying again is useless. Cost: one request a call (20 ms
to 100 ms at a cloud's store); ``fetch`` and ``put`` of large objects move PART_BYTES at a time, up to PARTS_AT_ONCE together.
Secrets come from the environment (AWS_*, GOOGLE_*, AZURE_*) or from the host's role. No error text repeats what the store or client says about them.
"""

import errno
import ipaddress
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from schemas.errors import SettingsError, StoreUnavailable

if TYPE_CHECKING:
    from obstore.store import ObjectStore

TRIES = 7
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
"""Pauses double: those between seven tries are 6.3 s together at most."""
CONNECT_TIMEOUT_S, REQUEST_TIMEOUT_S = 5.0, 30.0
PART_BYTES = 8 * 2**20
"""What one request moves: 8 MiB in REQUEST_TIMEOUT_S is 280 KB a second."""
WHOLE_BYTES = 16 * 2**20
"""Up to here an object is written with one request, beyond it in parts."""
MAX_PARTS = 9_000
"""S3 takes 10,000."""
PARTS_AT_ONCE = 4
_TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_NO_PARTS = frozenset({405, 501})
"""What a store without uploads in parts answers when one is begun."""
_STATUS = re.compile(r"status code:? (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_METADATA_SERVICE = ("169.254.169.254", "metadata.google.internal")
_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class Found(NamedTuple):
    """What a listing says of an object."""

    key: str
    size_bytes: int
    modified_at: float
    """Seconds since 1970, by the clock of the store."""


class _Unsettled(Exception):
    """The store refused a request because of another one that left nothing: it is sent again."""


class Objects:
    """The objects under a URL such as ``s3://bucket/prefix``; keys are relative to it. May be used by several threads."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._store = _open(url)
        self._takes_parts = True

    def create(self, key: str, data: bytes) -> None:
        """Make the object if there is none. Raises FileExistsError if another writer was first, StoreUnavailable if nobody knows."""
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        is_unsure = False

        def attempt() -> None:
            nonlocal is_unsure
            try:
                self._obstore.put(self._store, key, data, mode="create", use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                self._settle(key, data, is_unsure)
            except BaseError:
                is_unsure = True
                raise

        try:
            self._in_bucket(lambda: self._try("create", key, attempt))
        except StoreUnavailable:
            if self._bytes_of(key) != data:
                raise

    def _settle(self, key: str, data: bytes, is_unsure: bool) -> None:
        """The store refused to make the object: another writer's is there, or the one of an earlier request of ours, or none at all."""
        there = self._bytes_of(key)
        if there is None:
            raise _Unsettled
        if not is_unsure or there != data:
            raise FileExistsError(errno.EEXIST, "an object is there already", f"{self.url}/{key}")

    def _bytes_of(self, key: str) -> bytes | None:
        try:
            return self.get(key)
        except FileNotFoundError:
            return None

    def put(self, key: str, source: bytes | Path) -> None:
        """Write the object, replacing what was there. A file is read while it is sent."""
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        if size <= WHOLE_BYTES:
            data = source if isinstance(source, bytes) else source.read_bytes()
            self._in_bucket(lambda: self._try("write", key, lambda: self._obstore.put(self._store, key, data, use_multipart=False)))
        else:
            self._in_bucket(lambda: self._try("write", key, lambda: self._put_large(key, source, size)))

    def _put_large(self, key: str, source: bytes | Path, size: int) -> None:
        """In parts, or with one request where the store has no uploads in parts."""
        from obstore.exceptions import BaseError

        if self._takes_parts:
            part = max(PART_BYTES, -(-size // MAX_PARTS))
            try:
                self._obstore.put(self._store, key, source, use_multipart=True, chunk_size=part, max_concurrency=PARTS_AT_ONCE)
            except BaseError as error:
                if _status_of(error) not in _NO_PARTS:
                    raise
                self._takes_parts = False
            else:
                return
        self._obstore.put(self._store, key, source, use_multipart=False)

    def get(self, key: str) -> bytes:
        """Bytes of the object. Raises FileNotFoundError."""
        data, total, tag = self._part(key, 0, PART_BYTES, None)
        rest = _starts(total)
        return b"".join([data, *_parts().map(lambda start: self._part(key, start, start + PART_BYTES, tag)[0], rest)])

    def fetch(self, key: str, file: IO[bytes]) -> None:
        """Write the bytes of the object to an empty file, in constant memory. Raises FileNotFoundError."""
        data, total, tag = self._part(key, 0, PART_BYTES, None)
        os.pwrite(file.fileno(), data, 0)

        def write(start: int) -> None:
            os.pwrite(file.fileno(), self._part(key, start, start + PART_BYTES, tag)[0], start)

        for _ in _parts().map(write, _starts(total)):
            pass

    def stat(self, key: str) -> Found | None:
        """Size and time of the object; None if there is none."""
        try:
            return _found(self._try("look at", key, lambda: self._obstore.head(self._store, key)))
        except FileNotFoundError:
            return None

    def listed(self, folder: str, after: str | None = None) -> list[Found]:
        """All objects below a folder, by key; ``after``: only keys behind this one."""

        def attempt() -> list[Found]:
            chunks: Iterable[Iterable[Any]] = self._obstore.list(self._store, folder or None, offset=after, chunk_size=1_000)
            return [_found(meta) for chunk in chunks for meta in chunk]

        found: list[Found] = self._in_bucket(lambda: self._try("list", folder, attempt))
        return sorted(entry for entry in found if after is None or entry.key > after)

    def directly_in(self, folder: str) -> tuple[list[Found], list[str]]:
        """The objects directly in a folder, and the names of the folders in it."""

        def attempt() -> tuple[list[Found], list[str]]:
            result = self._obstore.list_with_delimiter(self._store, folder or None)
            return [_found(meta) for meta in result["objects"]], [path.rstrip("/").rpartition("/")[2] for path in result["common_prefixes"]]

        found: tuple[list[Found], list[str]] = self._in_bucket(lambda: self._try("list", folder, attempt))
        return found

    def delete(self, key: str) -> None:
        """Remove the object; harmless if there is none."""
        try:
            self._try("remove", key, lambda: self._obstore.delete(self._store, key))
        except FileNotFoundError:
            return

    @property
    def _obstore(self) -> Any:
        import obstore  # half a second, which a root in a folder does not pay

        return obstore

    def _part(self, key: str, start: int, end: int, tag: str | None) -> tuple[bytes, int, str | None]:
        """Bytes [start, end) of an object, those that there are; its size; and its tag, which later parts have to have too."""
        options: dict[str, Any] = {"range": (start, end)} | ({"if_match": tag} if tag else {})

        def attempt() -> tuple[bytes, int, str | None]:
            result = self._obstore.get(self._store, key, options=options)
            total = int(result.meta["size"])
            data = bytes(result.bytes())
            if len(data) != min(end, total) - start:
                raise _Unsettled
            return data, total, result.meta["e_tag"]

        try:
            return self._try("read", key, attempt)
        except StoreUnavailable:
            if start == 0 and (found := self.stat(key)) is not None and not found.size_bytes:
                return b"", 0, None  # an empty object has no range
            raise

    def _try(self, what: str, key: str, attempt: Callable[[], _Result]) -> _Result:
        """Call it until it returns, or raises what no further call changes."""
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        for number in range(1, TRIES + 1):
            try:
                return attempt()
            except FileExistsError:
                raise
            except FileNotFoundError as error:
                raise self._missing(key, error) from None
            except (PermissionDeniedError, UnauthenticatedError) as error:
                raise SettingsError(
                    f"the store refuses to {what} {self.url}/{key} ({_told(error)}): the credentials of this process (AWS_ACCESS_KEY_ID …, or the "
                    "host's role) need the right to list the bucket and to read, write and remove objects under the root"
                ) from None
            except (BaseError, _Unsettled) as error:
                if number == (2 if _asks_for_credentials(error) else TRIES) or not _is_transient(error):
                    raise self._unavailable(what, key, error, number) from None
                _log.debug("could not %s %s/%s (%s); trying again", what, self.url, key, _told(error))
                time.sleep(random.uniform(0.5, 1.0) * min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (number - 1)))  # noqa: S311
        raise AssertionError

    def _missing(self, key: str, error: FileNotFoundError) -> FileNotFoundError | SettingsError:
        if "NoSuchBucket" in str(error):
            return self._no_bucket()
        return FileNotFoundError(errno.ENOENT, "there is no object", f"{self.url}/{key}")

    def _in_bucket(self, act: Callable[[], _Result]) -> _Result:
        """What finds nothing here has found no bucket: a listing, or a request that writes."""
        try:
            return act()
        except FileNotFoundError:
            raise self._no_bucket() from None

    def _no_bucket(self) -> SettingsError:
        return SettingsError(f"there is no bucket for the root {self.url}: create it, or name another --root")

    def _unavailable(self, what: str, key: str, error: BaseException, tries: int) -> StoreUnavailable | SettingsError:
        if _status_of(error) == 404:
            return self._no_bucket()
        if _asks_for_credentials(error):
            return SettingsError(
                f"there are no credentials for {self.url}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (gs: GOOGLE_APPLICATION_CREDENTIALS, "
                "az: AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY), or give the host a role"
            )
        return StoreUnavailable(
            f"could not {what} {self.url}/{key} in {tries} {'try' if tries == 1 else 'tries'}: {_told(error)}. Nothing is lost: "
            "start again when the store answers"
        )


def _starts(total: int) -> range:
    """Where the parts after the first begin."""
    return range(PART_BYTES, total, PART_BYTES)


@cache
def _parts() -> ThreadPoolExecutor:
    """One for the process: it bounds the parts that are in memory and under way at once."""
    return ThreadPoolExecutor(PARTS_AT_ONCE, "headrace-parts")


def _found(meta: Any) -> Found:
    return Found(meta["path"], int(meta["size"]), meta["last_modified"].timestamp())


def _is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: no answer came, or one that says so."""
    status = _status_of(error)
    return status is None or status in _TRANSIENT


def _status_of(error: BaseException) -> int | None:
    """The HTTP status of the answer, if there was one."""
    found = _STATUS.search(str(error))
    return int(found[1]) if found else None


def _asks_for_credentials(error: BaseException) -> bool:
    """Whether the client looked for a role of the host, and there is none."""
    return any(address in str(error) for address in _METADATA_SERVICE)


def _told(error: BaseException) -> str:
    """What went wrong, without what may hold a secret: the body of an answer, a query, a header."""
    text = str(error).partition("\n")[0]
    if status := _STATUS.search(text):
        code = _CODE.search(str(error))
        return f"HTTP status {status[1]}" + (f", {code[1]}" if code else "")
    if isinstance(error, _Unsettled):
        return "the answer was cut off, or another request was in the way"
    return re.sub(r"\?\S*", "", text.rpartition(" - ")[2])[:200]


def _open(url: str) -> "ObjectStore":
    """A client without retries of its own: after a lost answer it would not say that it had asked twice."""
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    client: Any = {"connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S), "timeout": timedelta(seconds=REQUEST_TIMEOUT_S)}
    if _is_plain_http_allowed():
        client["allow_http"] = True
    config: Any = {"disable_bulk_delete": True} if url.startswith("s3://") else {}
    try:
        return from_url(url, config=config, client_options=client, retry_config={"max_retries": 0})
    except (BaseError, ValueError) as error:
        raise SettingsError(f"the root {url} cannot be opened: {_told(error)}; check the URL, and AWS_ENDPOINT_URL if it is set") from None


def _is_plain_http_allowed() -> bool:
    """Without TLS only if nothing leaves this machine, or if AWS_ALLOW_HTTP allows it."""
    endpoint = urlsplit(next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), ""))
    if endpoint.scheme != "http" or os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true"):
        return endpoint.scheme == "http"
    if endpoint.hostname == "localhost" or _is_loopback(endpoint.hostname or ""):
        return True
    raise SettingsError(
        f"the store at http://{endpoint.hostname} would be used without TLS: name an https:// endpoint, or allow it with AWS_ALLOW_HTTP=true"
    )


_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def in_bounded_threads(act: Callable[[Any], _Result], values: Iterable[Any]) -> Iterator[_Result]:
    """``map`` for calls that wait for the store: some run at a time, and the results come in the order of the values."""
    return _files().map(act, values)


@cache
def _files() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(8, "headrace-objects")
