"""Fetching one category of MVTec AD (150 MB for *bottle*) instead of the archive of all 15 (4.9 GB)."""

import errno
import http.client
import logging
import lzma
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Protocol

from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from padim_bottle.data.layout import CATEGORIES, verify_category
from padim_bottle.errors import UnavailableError, UserError

logger = logging.getLogger(__name__)

DOWNLOAD_PAGE = "https://www.mvtec.com/company/research/datasets/mvtec-ad/downloads"
WORK_FOLDER = ".mvtec_ad_download"
"""Hidden folder in the root that holds partial archives, to resume from, and what is being unpacked."""

# The largest category has 0.9 GB and 640 files. More than this is no category of MVTec AD.
MAX_BYTES = 4 * 2**30
MAX_FILES = 10_000

# Share and archive of each category on MVTec's file host; the older share has the same archives.
_SHARE_OF_ALL = "38536/3830184030e49fe74747669442f0f283"
_SHARES_AND_ARCHIVES = {
    "bottle": ("150452/132a93367fb17cdf968dfb5c4013f6e7", "420937370-1629958698"),
    "cable": ("150453/10f960e07fec2838b2cd512586633a32", "420937413-1629958794"),
    "capsule": ("150454/e0ce6dd74eb150f46c0d98131b3703f2", "420937454-1629958872"),
    "carpet": ("150455/eac7fbce84d93a5094e13f391170eca4", "420937484-1629959013"),
    "grid": ("150456/bb0b2e3dc804ccb8b4485e01f8e4493b", "420937487-1629959044"),
    "hazelnut": ("150457/51d49f65e84bdc100ff8035d7dd783ea", "420937545-1629959162"),
    "leather": ("150458/923030ce14e10a7d147e95d0f8885f6b", "420937607-1629959262"),
    "metal_nut": ("150459/c68856a21dca589b0f8ff6d4ee0f18f4", "420937637-1629959294"),
    "pill": ("150460/d4f1c04da67034ccc8d8b5fa3e73f244", "420938129-1629960351"),
    "screw": ("150461/242f454cc6385e5693c4fd4b94567d1e", "420938130-1629960389"),
    "tile": ("150462/5479f0fdc97bc6fa16eab0cb0cf0109f", "420938133-1629960456"),
    "toothbrush": ("150463/895a1a5fb84b958f07417784b060434b", "420938134-1629960477"),
    "transistor": ("150464/99b8ea0332438d64fcc2475ee73f9c29", "420938166-1629960554"),
    "wood": ("150465/d5b4115b720cdb54d217e75636e6e374", "420938383-1629960649"),
    "zipper": ("150466/bd155b557520edaf692d9bfdb915c24a", "420938385-1629960680"),
}


class SourceError(Exception):
    """A source did not give what was asked of it; the next one may."""


class BadDataError(SourceError):
    """What a source gave is of no use, so it is not kept to resume from."""


class Source(Protocol):
    """A place to fetch a category from. ``str(source)`` names it to the user."""

    def fetch(self, category: str, work: Path) -> Path:
        """Fetch a category, resuming from what an earlier attempt left in ``work``.

        Args:
            category: Name of the category.
            work: An existing folder that belongs to this source and category.

        Returns:
            A folder within ``work`` that holds the category's folder.

        Raises:
            SourceError: If the category cannot be had here.
        """
        ...


@dataclass(frozen=True)
class ArchiveSource:
    """A tar archive of one category behind a URL.

    Attributes:
        url: Where the archive is.
        attempts: How many attempts in a row may bring nothing new before the source is given up.
        timeout: Seconds that the server may stay silent.
        backoff: Seconds to wait before the second attempt; doubled for each further one.
    """

    url: str
    attempts: int = 4
    timeout: float = 30.0
    backoff: float = 0.5

    def __str__(self) -> str:
        return self.url

    def fetch(self, category: str, work: Path) -> Path:
        """Download the archive, resuming a partial one, and unpack it: see :class:`Source`."""
        archive, unpacked = work / "archive.part", work / "unpacked"
        self._download(category, archive)
        shutil.rmtree(unpacked, ignore_errors=True)
        unpack(archive, unpacked)
        return unpacked

    def _download(self, category: str, archive: Path) -> None:
        most, failures = _size(archive), 0
        while True:
            try:
                self._transfer(category, archive)
                return
            except _CutError as error:  # noqa: PERF203 - a retry is such a loop
                failures = 1 if _size(archive) > most else failures + 1
                most = max(most, _size(archive))
                if failures >= self.attempts:
                    raise SourceError(f"{error} ({failures} attempts)") from error
                logger.info("%s: %s; trying again", self.url, error)
                time.sleep(self.backoff * 2 ** (failures - 1))

    def _transfer(self, category: str, archive: Path) -> None:
        """Make one request, for what is missing of the archive."""
        start = _size(archive)
        headers = {"User-Agent": "padim-bottle"} | ({"Range": f"bytes={start}-"} if start else {})
        try:
            # An opener made now heeds the proxies that the environment names now.
            opener = urllib.request.build_opener()
            response = opener.open(urllib.request.Request(self.url, headers=headers), timeout=self.timeout)
        except urllib.error.HTTPError as error:
            if start and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                if error.headers.get("Content-Range") == f"bytes */{start}":
                    return  # all of it was here already
                archive.unlink()
                raise _CutError("the partial archive is no part of what the server has") from error
            kind = _CutError if error.code in _PASSING_STATUS else SourceError
            raise kind(f"HTTP {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            raise _CutError(_reason(error)) from error
        with response:
            if response.status != http.HTTPStatus.PARTIAL_CONTENT:
                start = 0  # the server sends all of it
            elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                archive.unlink(missing_ok=True)
                raise _CutError("the server sent another part of the archive than was asked for")
            total = None if response.length is None else start + response.length
            bar = tqdm(desc=category, initial=start, total=total, unit="B", unit_scale=True, unit_divisor=1024)
            with bar, archive.open("r+b" if start else "wb") as file:
                file.seek(start)
                while chunk := _read(response):
                    file.write(chunk)
                    bar.update(len(chunk))
                    if file.tell() > MAX_BYTES:
                        raise BadDataError(f"the archive has more than {MAX_BYTES / 2**30:g} GiB")
        if total is not None and _size(archive) < total:
            raise _CutError(f"the connection was cut after {_size(archive)} of {total} bytes")


@dataclass(frozen=True)
class HuggingFaceSource:
    """A dataset repository on the Hugging Face Hub that has each category as a folder."""

    repo_id: str

    def __str__(self) -> str:
        return f"https://huggingface.co/datasets/{self.repo_id}"

    def fetch(self, category: str, work: Path) -> Path:
        """Download the category's files, passing over complete ones: see :class:`Source`."""
        from huggingface_hub import snapshot_download  # slow to import, and seldom needed

        try:
            snapshot_download(self.repo_id, repo_type="dataset", allow_patterns=[f"{category}/*"], local_dir=work)
        except Exception as error:  # the hub's client, its HTTP client and its cache raise many kinds
            if _is_local(error):
                raise
            raise SourceError(_reason(error)) from error
        return work


def default_sources(category: str) -> list[Source]:
    """Where a category of MVTec AD can be had, in the order to try."""
    share, archive = _SHARES_AND_ARCHIVES[category]
    return [
        *(
            ArchiveSource(f"https://www.mydrive.ch/shares/{place}/download/{archive}/{category}.tar.xz")
            for place in (share, _SHARE_OF_ALL)
        ),
        HuggingFaceSource("foersben/mvtec-ad"),
    ]


def download_category(category: str, root: str | Path, sources: Sequence[Source] | None = None) -> Path:
    """Download a category, verify it, and only then put it at its place.

    A download that was interrupted is resumed by the next call. Two processes that want the same category at
    the same time do not disturb each other: the second waits and finds it there.

    Args:
        category: Name of the category.
        root: The folder that holds the categories; made if missing.
        sources: Where to fetch from, tried in turn. ``None``: :func:`default_sources`.

    Returns:
        The category's folder, ``root/category``.

    Raises:
        UserError: If no source gives the category as published, or ``root`` cannot be written.
    """
    if sources is None:
        if category not in CATEGORIES:
            raise UserError(f"'{category}' is no category of MVTec AD, which has {', '.join(CATEGORIES)}.")
        sources = default_sources(category)
    if not hasattr(tarfile, "data_filter"):
        raise UserError("This Python cannot unpack archives safely: update it to its last patch release.")
    target = Path(root).absolute() / category
    work = target.parent / WORK_FOLDER
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = FileLock(work / f"{category}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.warning("Waiting for another process that downloads '%s' to %s", category, target.parent)
            lock.acquire()
        try:
            if not target.exists():
                _fetch_from_first(sources, category, work / category, target)
        finally:
            lock.release()
    except OSError as error:
        space = " Free some disk space." if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise UserError(
            f"Cannot write MVTec AD's '{category}' to {target.parent}: {_reason(error)}.{space} Set "
            "data.init_args.root or MVTEC_AD_ROOT to a folder that can be written, or to one that already "
            "holds the category."
        ) from error
    return target


def _fetch_from_first(sources: Sequence[Source], category: str, work: Path, target: Path) -> None:
    failures = []
    for source in sources:
        # By source, so that what two of them sent never meets in one file.
        own = work / sha256(str(source).encode()).hexdigest()[:8]
        own.mkdir(parents=True, exist_ok=True)
        logger.info("Downloading MVTec AD's '%s' from %s", category, source)
        try:
            folder = source.fetch(category, own)
            try:
                verify_category(folder, category)
            except UserError as error:
                raise BadDataError(f"what it gave is not usable. {error}") from error
        except SourceError as error:
            failures.append(f"{source}: {error}")
            logger.warning("%s", failures[-1])
            if isinstance(error, BadDataError):
                shutil.rmtree(own, ignore_errors=True)
            continue
        # Within one file system, hence at once or not at all.
        (folder / category).rename(target)
        shutil.rmtree(work, ignore_errors=True)
        return
    tried = "".join(f"  - {failure}\n" for failure in failures)
    raise UnavailableError(
        f"Could not download MVTec AD's '{category}'. Tried:\n{tried}"
        f"Either download {category}.tar.xz by hand from {DOWNLOAD_PAGE} and unpack it in {target.parent}, "
        f"so that there is {target / 'train' / 'good'};\n"
        "or, if you have the data already, set MVTEC_AD_ROOT (or data.init_args.root) to the folder that "
        f"holds '{category}'.\n"
        f"What was received so far, if anything, is kept in {work}, and the next run resumes it."
    )


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar archive of plain files and folders, which need not be trusted.

    Args:
        archive: A tar file, compressed in any way that ``tarfile`` knows.
        folder: Where to; made if missing.

    Raises:
        BadDataError: If the archive is damaged, or a member would leave ``folder``, is a link or a device, or
            all of them are too many or too large.
        OSError: If ``folder`` cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = size = 0
    try:
        with tarfile.open(archive, "r|*") as tar:
            for member in tar:
                count, size = count + 1, size + member.size
                if count > MAX_FILES or size > MAX_BYTES:
                    raise BadDataError(f"the archive holds more than {MAX_FILES} files or {MAX_BYTES / 2**30:g} GiB")
                if not (member.isfile() or member.isdir()):
                    raise BadDataError(f"the archive holds '{member.name}', neither a file nor a folder")
                path = PurePosixPath(member.name.replace("\\", "/"))
                if path.is_absolute() or ".." in path.parts or ":" in member.name:
                    raise BadDataError(f"the archive holds '{member.name}', outside its folder")
                tar.extract(member, folder, filter="data")
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        if _is_local(error):
            raise
        raise BadDataError(f"the archive is damaged: {_reason(error)}") from error


class _CutError(Exception):
    """A transfer ended early; the next attempt goes on from there."""


# Timeout, too many requests, and the server's own troubles.
_PASSING_STATUS = {408, 429, *range(500, 600)}


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(1 << 20)
    except (OSError, http.client.HTTPException) as error:
        raise _CutError(_reason(error)) from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_local(error: Exception) -> bool:
    """Whether the disk is to blame, and so no other source would help."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
    return isinstance(error, OSError) and error.errno in codes


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", None)
    if isinstance(cause, Exception):  # urllib wraps what the socket said
        return _reason(cause)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
