"""What `vfm doctor` looks at: packages, devices, disk, permission to write."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from vfm.config import UserError
from vfm.flow.launch import library_versions
from vfm.flow.yaml_lines import one_line
from vfm.plugins import load_plugins, stage_types

Finding = tuple[bool, str, str]


def findings(store: Path) -> Iterator[Finding]:
    """(fine, what, detail) for each thing looked at."""
    yield True, "python", f"{platform.python_version()} on {platform.platform()}, {os.cpu_count()} cores"
    yield True, "packages", ", ".join(f"{name} {version}" for name, version in library_versions().items())
    yield _plugins()
    yield _device()
    yield _report_parts()
    yield _writable(store)


def _plugins() -> Finding:
    try:
        known = stage_types(load_plugins())
    except UserError as error:
        return False, "plugins", one_line(str(error))
    return True, "plugins", f"{len(known)} stages of {len({kind.partition('.')[0] for kind in known})} domains"


def _device() -> Finding:
    if not find_spec("torch"):
        return True, "device", "torch is not installed: curation works, training needs pip install 'vfm-core[torch]'"
    try:
        import torch
    except (ImportError, OSError) as error:  # a library of the system is missing
        return False, "device", f"torch cannot be loaded: {one_line(str(error))}"
    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return True, "device", f"CUDA {torch.version.cuda}: {', '.join(cards)}"
    return True, "device", f"CPU, {torch.get_num_threads()} threads (no CUDA device)"


def _report_parts() -> Finding:
    missing = [name for name in ("matplotlib", "jinja2") if not find_spec(name)]
    if missing:
        return False, "report", f"no report without {' and '.join(missing)}: pip install 'vfm-core[report]'"
    return True, "report", "can be drawn"


def _writable(store: Path) -> Finding:
    place = next(path for path in (store.absolute(), *store.absolute().parents) if os.path.lexists(path))
    if not place.is_dir():
        return False, "store", f"{place}: is a file, not a folder"
    try:
        with tempfile.NamedTemporaryFile(dir=place):
            pass
    except OSError as error:
        return False, "store", f"{place}: cannot write: {error.strerror}"
    return True, "store", f"{place}: writable, {shutil.disk_usage(place).free / 1e9:,.0f} GB free"
