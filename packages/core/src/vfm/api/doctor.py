"""Check packages, devices, the report and the store for `vfm doctor`."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from vfm.base import UserError, how_to_install
from vfm.flow.recipe.yaml_lines import one_line
from vfm.flow.records.manifest import library_versions
from vfm.interfaces import load_plugins, stage_types
from vfm.storage.permissions import nearest_existing

Finding = tuple[bool, str, str]  # whether the check passed, its name, and the observation


def run_checks(store: Path) -> Iterator[Finding]:
    """Yield one finding for each check."""
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
    domains = {kind.split(".", 1)[0] for kind in known}
    return True, "plugins", f"{len(known)} stages of {len(domains)} domains"


def _device() -> Finding:
    if not find_spec("torch"):
        missing = f"torch is missing: curation works, training does not; {how_to_install('vfm-core[torch]')}"
        return True, "device", missing
    try:
        import torch  # optional extra
    except (ImportError, OSError) as error:  # a system library may be missing
        return False, "device", f"torch cannot be loaded: {one_line(str(error))}"
    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return True, "device", f"CUDA {torch.version.cuda}: {', '.join(cards)}"
    return True, "device", f"CPU, {torch.get_num_threads()} threads (no CUDA device)"


def _report_parts() -> Finding:
    missing = [name for name in ("matplotlib", "jinja2") if not find_spec(name)]
    if missing:
        return False, "report", f"the report needs {' and '.join(missing)}: {how_to_install('vfm-core[report]')}"
    return True, "report", "can be drawn"


def _writable(store: Path) -> Finding:
    folder = nearest_existing(store.absolute())
    if not folder.is_dir():
        return False, "store", f"{folder}: is a file, not a folder"
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        return False, "store", f"{folder}: cannot write: {error.strerror}"
    return True, "store", f"{folder}: writable, {shutil.disk_usage(folder).free / 1e9:,.0f} GB free"
