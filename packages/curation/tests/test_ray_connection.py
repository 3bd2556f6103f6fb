"""A Ray that does not come up is one line. The module has no cluster of its own, so that nothing is connected."""

from pathlib import Path

import pytest

from vfm.plugin import UserError
from vfm_curation.engine import run_shards
from vfm_curation.runtime import CurationRuntime


def done(folder: Path, shard: int) -> int:
    return shard


def test_a_ray_cluster_that_does_not_come_up_is_one_line() -> None:
    pytest.importorskip("ray")
    runtime = CurationRuntime(engine="ray", ray_address="not an address")
    with pytest.raises(UserError, match=r"^(Ray did not start|no Ray cluster found)[^\n]*$"):
        list(run_shards(done, Path(), range(1), runtime))
