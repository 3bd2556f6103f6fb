"""Every kernel compiles at real shapes within the limits of the tables of settings.

For one architecture in the suite, and for five by `make kernels-wide`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "aot"
FILES = {file.stem.removeprefix("cases_"): file for file in sorted(FOLDER.glob("cases_*.py"))}
TENSOR_CORES = {  # kernels with matrix products
    "attention_short_kernel",
    "attention_stream_kernel",
    "attention_backward_kernel",
    "pair_gradients_kernel",
    "pair_statistics_kernel",
}
PRODUCTS = {"sm_90": "wgmma", "sm_100": "tcgen05"}  # instructions of matrix products; mma_sync elsewhere
ALL_REGISTERS = 65536
TABLES_ARE_OF = (3, 6)  # version of Triton for which the settings were chosen
SHARED_KIB = {"sm_80": 163, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99}


SLOW = {"attention": pytest.mark.slow}
ARCHITECTURES = [("sm_90",), ("sm_80", "sm_89", "sm_100", "sm_120")][: 2 if "VFM_WIDE" in os.environ else 1]


@pytest.mark.parametrize("architectures", ARCHITECTURES, ids=" ".join)
@pytest.mark.parametrize(
    "file", [pytest.param(file, id=name, marks=SLOW.get(name, ())) for name, file in FILES.items()]
)
def test_kernels_compile_within_their_limits(file: Path, architectures: tuple[str, ...]) -> None:
    triton = pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    numbers = [name.removeprefix("sm_") for name in architectures]
    command = [sys.executable, str(FOLDER / "worker.py"), str(file), *numbers]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-6000:]
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert {kernel["architecture"] for kernel in kernels} == {*architectures}
    spilling = [facts for facts in kernels if facts["spills"]]
    newer = tuple(map(int, triton.__version__.split(".")[:2])) > TABLES_ARE_OF
    for facts in kernels:
        print(facts)
        assert facts["spills"] == 0 or newer, facts
        row, all_shared_bytes = facts["row"], 1024 * SHARED_KIB[facts["architecture"]]
        assert facts["registers"] <= row["registers"], facts
        assert facts["shared_bytes"] <= row["shared_bytes"] <= all_shared_bytes, facts
        programs = row.get("programs_per_multiprocessor", 1)  # all of them must fit a multiprocessor at once
        assert programs * row["num_warps"] * 32 * -(-facts["registers"] // 8) * 8 <= ALL_REGISTERS, facts
        assert programs * facts["shared_bytes"] <= all_shared_bytes, facts
        if facts["kernel"] in TENSOR_CORES:
            expected = PRODUCTS.get(facts["architecture"], "mma_sync")
            assert {kind for kind in ("wgmma", "tcgen05", "mma_sync") if facts[kind]} == {expected}, facts
        if "odd strides" in facts["case"]:
            continue  # such rows are loaded element by element
        assert row.get("STAGES", 1) == 1 or facts["cp_async"] > 0, f"the next row is not prefetched: {facts}"
        assert facts["wide_accesses"] + facts["cp_async"] > 0, f"no access of 16 bytes: {facts}"
        assert facts["kernel"] not in TENSOR_CORES or facts["cp_async"] > 0, facts
    if spilling:  # checked last, so that all else must hold
        spills = {f"{facts['case']} on {facts['architecture']}": facts["spills"] for facts in spilling}
        pytest.xfail(
            f"Triton {triton.__version__} spills where {'.'.join(map(str, TABLES_ARE_OF))} does not, bytes: {spills}"
        )
