"""Reading file contents: whole files with resume and a check of every byte, or a range of one."""

from __future__ import annotations

import contextlib
import os
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from saesync.digest import BLOCK, FileDigest, Hasher, digest_file
from saesync.errors import Unavailable
from saesync.hub.client import READ_SECONDS, Client, failures, quoted
from saesync.hub.trouble import CONNECT_SECONDS, Answered, Asked, Garbled
from saesync.scratch import try_lock

if TYPE_CHECKING:
    import httpx2

Progress = Callable[[int, int], None]
_MAX_REDIRECTS = 5
_MAX_CORRUPT = 3
_LOOK_AGAIN = 0.2  # seconds between looks at what another process is downloading


def resolve_path(repo: str, sha: str, path: str, kind: str) -> str:
    """Address of a file's content under the endpoint."""
    prefix = "" if kind == "model" else f"{kind}s/"
    return f"/{prefix}{repo}/resolve/{quoted(sha)}/{quoted(path, safe='/')}"


@contextlib.contextmanager
def opened(client: Client, address: str, token: str | None, start: int, stop: int | None) -> Iterator[httpx2.Response]:
    """A streamed answer holding the bytes from ``start`` (up to ``stop``), or the whole file if the server knows no ranges.

    Redirects are followed one by one: the token goes only to the Hub's own origin, never to an object store, and a redirect to
    another repo (a rename) is an error.

    Raises:
        Answered: any answer but 200 and 206.
    """
    import httpx2

    timeout = httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
    wanted = {"accept-encoding": "identity"}
    if start or stop is not None:
        wanted["range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
    url = client.endpoint + address
    for _ in range(_MAX_REDIRECTS):
        ours = _origin(url) == _origin(client.endpoint)
        headers = client.headers(token if ours else None, wanted)
        with client.session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=False) as response:
            if ours:
                client.reach.answered()
            if response.is_success:
                yield response
                return
            target = urllib.parse.urljoin(url, response.headers.get("Location", ""))
            if not response.has_redirect_location or (_origin(target) == _origin(client.endpoint) and "/resolve/" in target):
                response.read()
                raise Answered(response)
        url = target
    raise Garbled


def _origin(url: str) -> tuple[str, str, int]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)


def read_bytes(client: Client, asked: Asked, address: str, start: int, stop: int | None) -> bytes:
    """Bytes ``start:stop`` of a file (to its end: None), with retries; fewer if the file is shorter. Not checked."""

    def action(token: str | None) -> bytes:
        try:
            with opened(client, address, token, start, stop) as response:
                skip = start if response.status_code == 200 else 0
                return _gather(response, skip, None if stop is None else stop - start)
        except Answered as answer:
            if answer.response.status_code == 416:  # the range begins behind the end of the file
                return b""
            raise

    return client.attempt(asked, action)


def _gather(response: httpx2.Response, skip: int, size: int | None) -> bytes:
    found = bytearray()
    for block in response.iter_bytes(BLOCK if size is None else max(1, min(BLOCK, size + skip))):
        found += block
        if size is not None and len(found) >= skip + size:
            break
    return bytes(found[skip:] if size is None else found[skip : skip + size])


def download(client: Client, asked: Asked, address: str, expect: FileDigest, into: Path, progress: Progress | None) -> FileDigest:
    """A whole file to ``into``. What an earlier run left in ``<into>.part`` is hashed and continued; while another process
    downloads the same, it is waited for.

    Every byte is hashed while it is written; only a file with the expected digest gets its name.

    Raises:
        Unavailable: also when the bytes that arrive are wrong again and again.
    """
    part = into.with_name(into.name + ".part")
    into.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with _alone(part, expect, progress) as alone:
            if alone:
                return _download(client, asked, address, expect, into, progress)
        if into.exists() and expect.same_bytes(found := digest_file(into)):  # the other one has finished it
            return found


@contextlib.contextmanager
def _alone(part: Path, expect: FileDigest, progress: Progress | None) -> Iterator[bool]:
    """Wait until no other process writes ``part``, and keep them away from it. False: it has got its name, or is gone.

    The lock is on the unfinished file itself, and ends with the process that holds it.
    """
    handle = os.open(part, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        while not try_lock(handle):
            if progress is not None:
                progress(min(_size(part), expect.size), expect.size)
            time.sleep(_LOOK_AGAIN)
        yield _is_at(handle, part)
    finally:
        os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open file still has this name."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _download(
    client: Client, asked: Asked, address: str, expect: FileDigest, into: Path, progress: Progress | None
) -> FileDigest:
    part = into.with_name(into.name + ".part")
    patience = client.patience()
    corrupt = 0
    while True:
        token, before = client.token(), _size(part)
        try:
            found = _attempt(client, address, token, expect, part, progress)
        except failures() as error:
            trouble = client.trouble(error, asked, token)
            if trouble is None:
                raise
            if _size(part) > before:
                patience.renew()
            patience.wait(trouble)
            continue
        if expect.same_bytes(found):
            part.replace(into)
            return found
        os.truncate(part, 0)  # the same file: the lock is on it
        corrupt += 1
        if corrupt == _MAX_CORRUPT:
            part.unlink()
            raise _corrupted(asked, expect, found)


def _attempt(
    client: Client, address: str, token: str | None, expect: FileDigest, part: Path, progress: Progress | None
) -> FileDigest:
    with part.open("a+b") as stream:
        hasher, done = _resume(stream, expect)
        if done < expect.size or expect.size == 0:
            with opened(client, address, token, done, None) as response:
                if done and response.status_code != 206:  # the server knows no ranges: from the start again
                    stream.truncate(0)
                    hasher, done = Hasher(expect.size), 0
                for block in response.iter_bytes():  # as they come: a larger block would be lost when the line breaks
                    stream.write(block)
                    hasher.update(block)
                    done += len(block)
                    if progress is not None:
                        progress(min(done, expect.size), expect.size)
                    if done > expect.size:
                        break
            if done < expect.size:
                raise Garbled  # an orderly but early end: the next attempt goes on from here
    return hasher.digest()


def _resume(stream: BinaryIO, expect: FileDigest) -> tuple[Hasher, int]:
    """The hasher over what is there already, and its length."""
    hasher, done = Hasher(expect.size), 0
    stream.seek(0)
    while done <= expect.size and (block := stream.read(BLOCK)):
        hasher.update(block)
        done += len(block)
    if done <= expect.size:
        return hasher, done
    stream.truncate(0)
    return Hasher(expect.size), 0


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _corrupted(asked: Asked, expect: FileDigest, found: FileDigest) -> Unavailable:
    pairs = ((expect.sha256, found.sha256), (expect.blob_id, found.blob_id))
    wanted, got = next(((a, b) for a, b in pairs if a is not None), (None, None))
    detail = (
        f"The Hub was asked to {asked.what}; {_MAX_CORRUPT} times the bytes did not have the digest its tree lists "
        f"({(wanted or '')[:12]}..., got {(got or '')[:12]}...). Nothing was kept. Try again later, or tell the owner."
    )
    return Unavailable("Download is corrupted", detail)
