"""Fetching one category of MVTec AD (150 MB for *bottle*) instead of the archive of all 15 (4.9 GB)."""

import errno
import http.client
import logging
import lzma
import shutil
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from padim_bottle.data.layout import CATEGORIES, verify_category
from padim_bottle.errors import UnavailableError, UserError, in_a_line

logger = logging.getLogger(__name__)

DOWNLOAD_PAGE = "https://www.mvtec.com/company/research/datasets/mvtec-ad/downloads"
REPOSITORY = "foersben/mvtec-ad"
"""Data set on the Hugging Face Hub with MVTec AD in its own layout."""
WORK_FOLDER = ".mvtec_ad_download"
"""Hidden folder in the root that holds what was received so far, for the next run to go on from."""

# The largest category has 0.9 GB and 640 files. More than this is no category of MVTec AD.
MAX_BYTES = 4 * 2**30
MAX_FILES = 10_000

# Each category's share and archive on MVTec's file host.
_ARCHIVES = {
    "bottle": "150452/132a93367fb17cdf968dfb5c4013f6e7/download/420937370-1629958698",
    "cable": "150453/10f960e07fec2838b2cd512586633a32/download/420937413-1629958794",
    "capsule": "150454/e0ce6dd74eb150f46c0d98131b3703f2/download/420937454-1629958872",
    "carpet": "150455/eac7fbce84d93a5094e13f391170eca4/download/420937484-1629959013",
    "grid": "150456/bb0b2e3dc804ccb8b4485e01f8e4493b/download/420937487-1629959044",
    "hazelnut": "150457/51d49f65e84bdc100ff8035d7dd783ea/download/420937545-1629959162",
    "leather": "150458/923030ce14e10a7d147e95d0f8885f6b/download/420937607-1629959262",
    "metal_nut": "150459/c68856a21dca589b0f8ff6d4ee0f18f4/download/420937637-1629959294",
    "pill": "150460/d4f1c04da67034ccc8d8b5fa3e73f244/download/420938129-1629960351",
    "screw": "150461/242f454cc6385e5693c4fd4b94567d1e/download/420938130-1629960389",
    "tile": "150462/5479f0fdc97bc6fa16eab0cb0cf0109f/download/420938133-1629960456",
    "toothbrush": "150463/895a1a5fb84b958f07417784b060434b/download/420938134-1629960477",
    "transistor": "150464/99b8ea0332438d64fcc2475ee73f9c29/download/420938166-1629960554",
    "wood": "150465/d5b4115b720cdb54d217e75636e6e374/download/420938383-1629960649",
    "zipper": "150466/bd155b557520edaf692d9bfdb915c24a/download/420938385-1629960680",
}


class SourceError(Exception):
    """A source did not give what was asked of it; the next one may."""


def archive_url(category: str) -> str:
    """Return the address of a category's archive on MVTec's file host."""
    return f"https://www.mydrive.ch/shares/{_ARCHIVES[category]}/{category}.tar.xz"


def fetch_from_hub(category: str, folder: Path) -> None:
    """Download a category's files to ``folder/category``; those that an earlier attempt received are kept.

    Raises:
        SourceError: the hub does not give them.
    """
    from huggingface_hub import snapshot_download  # slow to import, and seldom needed

    try:
        snapshot_download(REPOSITORY, repo_type="dataset", allow_patterns=[f"{category}/*"], local_dir=folder)
    except Exception as error:  # the hub's client, its HTTP client and its cache raise many kinds
        _raise_local(error)
        raise SourceError(_reason(error)) from error


def fetch_archive(category: str, folder: Path) -> None:
    """Download a category's archive and unpack it to ``folder/category`` as it arrives.

    Raises:
        SourceError: the host does not answer, or not with a whole archive of plain files.
    """
    shutil.rmtree(folder / category, ignore_errors=True)
    try:
        # An opener made now heeds the proxies that the environment names now.
        response = urllib.request.build_opener().open(archive_url(category), timeout=30)
        with response, tqdm.wrapattr(response, "read", response.length, desc=category) as stream:
            unpack(stream, folder)
    except (OSError, http.client.HTTPException) as error:
        _raise_local(error)
        raise SourceError(_reason(error)) from error


def unpack(stream: IO[bytes], folder: Path) -> None:
    """Unpack a tar archive, which need not be trusted, from a stream of bytes.

    Args:
        stream: readable; compressed in any way that ``tarfile`` knows.
        folder: where to; made if missing.

    Raises:
        SourceError: the archive is damaged, would leave ``folder``, or is too much.
        OSError: ``folder`` cannot be written.
    """
    count = size = 0
    try:
        with tarfile.open(fileobj=stream, mode="r|*") as tar:
            for member in tar:
                count, size = count + 1, size + member.size
                if count > MAX_FILES or size > MAX_BYTES:
                    raise SourceError(f"the archive holds more than {MAX_FILES} files or {MAX_BYTES / 2**30:g} GiB")
                tar.extract(member, folder, filter="data")  # refuses devices, and paths and links that lead out
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError) as error:
        raise SourceError(f"the archive is damaged: {_reason(error)}") from error


SOURCES: dict[str, Callable[[str, Path], None]] = {
    f"https://huggingface.co/datasets/{REPOSITORY}": fetch_from_hub,
    "https://www.mydrive.ch, MVTec's file host": fetch_archive,
}


def download_category(category: str, root: str | Path) -> Path:
    """Download a category, verify it, and only then put it at its place.

    Two processes that want the same category do not disturb each other: the second waits and finds it there.

    Args:
        category: one of the 15 of MVTec AD.
        root: the folder that holds the categories; made if missing.

    Returns:
        The category's folder, ``root/category``.

    Raises:
        UserError: no source gives the category as published, or ``root`` cannot be written.
    """
    if category not in CATEGORIES:
        raise UserError(f"'{category}' is no category of MVTec AD, which has {', '.join(CATEGORIES)}.")
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
                _fetch_from_first(category, work / category, target)
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


def _fetch_from_first(category: str, work: Path, target: Path) -> None:
    failures = []
    for number, (name, fetch) in enumerate(SOURCES.items()):
        own = work / str(number)  # what two sources sent never meets in one folder
        own.mkdir(parents=True, exist_ok=True)
        logger.info("Downloading MVTec AD's '%s' from %s", category, name)
        try:
            fetch(category, own)
            verify_category(own, category)
        except SourceError as error:
            failures.append(f"{name}: {error}")
        except UserError as error:
            failures.append(f"{name}: what it gave is not usable. {error}")
            shutil.rmtree(own)
        else:
            (own / category).rename(target)  # within one file system, hence at once or not at all
            shutil.rmtree(work, ignore_errors=True)
            return
        logger.warning("%s", failures[-1])
    tried = "".join(f"  - {failure}\n" for failure in failures)
    raise UnavailableError(
        f"Could not download MVTec AD's '{category}'. Tried:\n{tried}"
        f"Either download {category}.tar.xz by hand from {DOWNLOAD_PAGE} and unpack it in {target.parent}, "
        f"so that there is {target / 'train' / 'good'};\n"
        "or, if you have the data already, set MVTEC_AD_ROOT (or data.init_args.root) to the folder that "
        f"holds '{category}'.\n"
        f"What the first source sent so far, if anything, is kept in {work}, and the next run goes on from there."
    )


def _raise_local(error: Exception) -> None:
    """Raise the error again if the disk is to blame, and so no other source would help."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
    if isinstance(error, OSError) and error.errno in codes:
        raise error


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    cause = getattr(error, "reason", None)
    if isinstance(cause, Exception):  # urllib wraps what the socket said
        return _reason(cause)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return in_a_line(error)
