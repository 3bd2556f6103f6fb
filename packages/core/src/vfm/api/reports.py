"""Draw the report of a run, or the comparison of several."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from vfm.api.paths import PATHS, AnyPath
from vfm.api.runs import Run
from vfm.base import UserError, how_to_install, repeated
from vfm.flow.plan.store import Store
from vfm.flow.records.run_states import failure_of, state_of
from vfm.flow.records.runs import RUN_FILE, find_run, kept_runs
from vfm.report import REPORT_FILE, is_current, present_summary, write_report
from vfm.storage.integrity import read_sealed
from vfm.storage.permissions import is_writable

MAX_NAMES = 20  # number of runs in a message


def draw_report(
    run: AnyPath | Run | Sequence[AnyPath | Run],
    *,
    store: AnyPath = "store",
    out: AnyPath | None = None,
    warn: Callable[[str], None] = warnings.warn,
) -> Path:
    """Draw the report of a run again, or the comparison of several runs, as `vfm report`.

    For an unfinished run, the page has the finished stages and the curves of the others so far.

    Args:
        run: A run, the name of its recipe, `NAME@NUMBER`, or its folder. Several are compared.
        store: Folder of artifacts and runs.
        out: File to write. None: `report.html` in the run's folder, or `comparison.html` here.
        warn: Called with a line about each unfinished run.

    Returns:
        The page.

    Raises:
        UserError: If there is no such run, or the file may not be written.
    """
    runs = [run] if isinstance(run, (*PATHS, Run)) else list(run)
    directories = [find_directory(word, Path(store)) for word in runs]
    for folder in directories:
        _warn_of_state(folder, warn)
    directory, *others = directories
    page = page_file(out, Path("comparison.html") if others else directory / REPORT_FILE)
    if others:
        _compare(list(map(Path.resolve, directories)), page)
    elif is_writable(page.parent):
        write_report(present_summary(directory), page)
    elif out or not is_current(directory):
        raise UserError(f"{page}: no permission to write; give another file as out")
    return page


def page_file(out: AnyPath | None, default: Path) -> Path:
    """Choose the file for a page.

    Raises:
        UserError: If it is a folder.
    """
    page = Path(out) if out is not None else default
    if page.is_dir():
        raise UserError(f"{page}: expected a file to write the report to, got a folder")
    return page


def find_directory(run: AnyPath | Run, store: Path) -> Path:
    """Find the folder of a run.

    Raises:
        UserError: If there is no such run.
    """
    if isinstance(run, Run):
        return run.directory
    directory = find_run(str(run), Store(store))
    if directory is None:
        names = [kept.directory.name for kept in kept_runs(Store(store))]
        if len(names) > MAX_NAMES:
            more = f" and {len(names) - MAX_NAMES} more, see vfm runs"
        else:
            more = ""
        raise UserError(f"no run {str(run)!r} in {store}; runs: {', '.join(names[:MAX_NAMES]) or 'none'}{more}")
    return directory


def _warn_of_state(directory: Path, warn: Callable[[str], None]) -> None:
    """Warn about the page of an unfinished run.

    Raises:
        UserError: If the record of the run is damaged.
    """
    name = directory.resolve().name
    state = state_of(directory, read_sealed(directory / RUN_FILE))
    if state == "running":
        warn(f"{name} is running; vfm report {name} --watch draws its page until it ends")
    elif state != "finished":
        why = failure_of(directory)
        warn(f"{name} has {state}; the page has its finished stages and the curves so far{why and f' ({why})'}")


def _compare(directories: list[Path], page: Path) -> None:
    """Write the page that compares runs.

    Raises:
        UserError: If two of them are the same run, or a package for drawing is missing.
    """
    twice = repeated(directory.name for directory in directories)
    if twice:
        raise UserError(f"expected different runs to compare, got {twice[0]} twice")
    try:
        from vfm.report.comparison import write_comparison  # needs matplotlib, an optional extra
    except ImportError as error:
        raise UserError(f"the report needs {error.name}: {how_to_install('vfm-core[report]')}") from None
    write_comparison({folder.name: present_summary(folder) for folder in directories}, page)
