"""Set what all tests share."""

import os
import shutil
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

SLOW_LEFT_OUT = pytest.StashKey[int]()

# By default hypothesis fails a test whose examples take long to draw, or one of which takes 200 ms; that depends on the
# machine. All else stays as it is: where CI is set, the examples are the same each time.
settings.register_profile("any machine", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that needs a program which is not installed. In CI, which installs them all, let it fail."""
    needed = [program for mark in item.iter_markers("needs") for program in mark.args]
    if missing := [program for program in needed if not any(map(shutil.which, program.split(" or ")))]:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"not installed: {', '.join(missing)}")


def pytest_runtest_teardown() -> None:
    """Remove the variable that the command line sets, so that scripts started by later tests find their neighbours."""
    os.environ.pop("PYTHONSAFEPATH", None)


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Count the slow tests that are left out; a worker of pytest-xdist passes the number on."""
    config = items[0].config
    slow = sum(item.get_closest_marker("slow") is not None for item in items)
    config.stash[SLOW_LEFT_OUT] = config.stash.get(SLOW_LEFT_OUT, 0) + slow
    if hasattr(config, "workeroutput"):
        config.workeroutput["slow_left_out"] = config.stash[SLOW_LEFT_OUT]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over the number from a worker; it is the same for each, since each collects all tests."""
    node.config.stash[SLOW_LEFT_OUT] = getattr(node, "workeroutput", {}).get("slow_left_out", 0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many slow tests were left out, and how to run them."""
    if left_out := terminalreporter.config.stash.get(SLOW_LEFT_OUT, 0):
        terminalreporter.write_line(
            f"{left_out} slow tests were left out: `make test` runs all tests, `uv run --dev pytest -n 3 -m slow` these"
        )
