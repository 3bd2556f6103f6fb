"""Set what all tests share."""

import os
import shutil

import pytest
from hypothesis import HealthCheck, settings

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
