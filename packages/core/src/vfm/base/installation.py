"""Instructions for installing missing packages, for errors. vfm is not on a package index yet."""

from __future__ import annotations


def how_to_install(requirement: str) -> str:
    """Format the command that installs a requirement such as `vfm-eva` or `vfm-core[torch]`, for an error."""
    quoted = f"'{requirement}'" if "[" in requirement else requirement
    if not requirement.startswith("vfm-"):
        return f"pip install {quoted}"
    folder = quoted.replace("vfm-", "packages/", 1)
    return f"uv pip install -e {folder} in a clone of vfm, which is on no package index yet"
