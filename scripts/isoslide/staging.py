"""Copies of slides on the disk of the machine that reads them, bounded in size, shared by its jobs.

Worth it where slides lie on a disk that is slow to seek in; elsewhere they are better read in place. A copy is made
under a hidden name and renamed when whole; jobs agree through file locks, which end with their process. The copies
least recently used make room for new ones. Where there is no room a slide is read where it is.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SPARE = 2 * 2**30  # bytes that stay free on the disk
WHOLE = (".svs", ".tif", ".tiff", ".ndpi", ".scn", ".bif", ".svslide", ".png", ".jpg", ".jpeg")  # a slide in one file
LOCK = ".lock"


class StagingError(ValueError):
    """The folder cannot be used; the message is one line."""


class Staging:
    """A folder of copies, at most so large.

    Args:
        folder: on a local disk; `$NAME` stands for a variable of the environment of the job, such as `$TMPDIR`.
        limit_gb: size of all copies together, in GB.

    Raises:
        StagingError: a variable is not set, or the folder cannot be made.
    """

    def __init__(self, folder: str, limit_gb: float):
        expanded = os.path.expandvars(folder)
        if "$" in expanded:
            raise StagingError(f"staging folder {folder!r}: a variable is not set on this machine")
        self._folder, self._limit = Path(expanded, f"isoslide-slides-{os.getuid()}"), limit_gb * 1e9
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._folder):
                pass
        except OSError as error:
            raise StagingError(f"staging folder {expanded!r}: {error.strerror}: name a local disk") from error

    @contextmanager
    def copy(self, path: str | Path) -> Iterator[Path]:
        """Yield the path of a copy that stays while the block runs, or the slide's own where there is no room."""
        path = Path(path)
        files = parts(path)
        with _locked(self._folder / LOCK, fcntl.LOCK_EX):  # one copy at a time: they share the disk they come from
            home = self._copied(path, files) if files else None
            lock = None if home is None else _open(home / LOCK)
            if lock is not None:
                fcntl.flock(lock, fcntl.LOCK_SH)
        try:
            yield path if home is None else home / path.name
        finally:
            if lock is not None:
                os.close(lock)

    def _copied(self, path: Path, files: list[Path]) -> Path | None:
        """Return the folder of the slide's copy, made if need be; None where there is no room."""
        try:
            facts = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        except OSError:  # what is wrong with the slide is said when it is opened
            return None
        home = self._folder / hashlib.sha256(repr((path.name, facts)).encode()).hexdigest()[:20]
        if home.is_dir():
            os.utime(home)
            return home
        size = sum(fact[1] for fact in facts)
        if not self._make_room(size):
            logging.warning("%s is read where it is: no room for its %.1f GB in %s", path, size / 1e9, self._folder)
            return None
        started, temporary = time.monotonic(), self._folder / ".copying"
        try:
            for file in files:
                target = temporary / file.relative_to(path.parent)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, target)
            os.close(_open(temporary / LOCK))
            temporary.rename(home)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            logging.warning("%s is read where it is: copying failed: %s", path, error.strerror)
            return None
        logging.info("copied %s, %.2f GB, in %.0f s", path.name, size / 1e9, time.monotonic() - started)
        return home

    def _make_room(self, size: int) -> bool:
        """Remove copies that no job reads, least recently used first, until a new one fits; tell whether it does."""
        shutil.rmtree(self._folder / ".copying", ignore_errors=True)  # of a job that was killed
        homes = sorted(
            (home for home in self._folder.iterdir() if home.is_dir()), key=lambda home: home.stat().st_mtime
        )
        sizes = {home: sum(file.stat().st_size for file in home.rglob("*") if file.is_file()) for home in homes}
        total, free = sum(sizes.values()), shutil.disk_usage(self._folder).free
        if size > self._limit or size + SPARE > free + total:
            return False
        for home in homes:
            if total + size <= self._limit and size + SPARE <= free:
                break
            lock = _open(home / LOCK)
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(home)
                total, free = total - sizes[home], free + sizes[home]
            os.close(lock)
        return total + size <= self._limit and size + SPARE <= free


def parts(path: Path) -> list[Path]:
    """Return the files that a slide consists of; none where that is not known, or one is missing."""
    suffix = path.suffix.lower()
    if path.is_dir() or suffix == ".dcm":  # OpenSlide looks into every file of the folder, whatever its name
        folder = path if path.is_dir() else path.parent
        return sorted(file for file in folder.glob("*") if file.is_file() and file.suffix.lower() not in WHOLE)
    if suffix == ".mrxs":
        return [path, *sorted(file for file in path.with_suffix("").rglob("*") if file.is_file())]
    return [path] if suffix in WHOLE and path.is_file() else []


@contextmanager
def _locked(path: Path, kind: int) -> Iterator[None]:
    lock = _open(path)
    try:
        fcntl.flock(lock, kind)
        yield
    finally:
        os.close(lock)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
