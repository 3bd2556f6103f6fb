"""Compile the kernels of an op for GPUs that this machine need not have, and print one JSON line for each.

Usage: `python worker.py FILE.py 80 90 ...`, with the architectures. FILE.py has `CASES`: name -> (op in the table,
width, function that runs the op). The functions use meta tensors of real shapes; each launch is intercepted with its
arguments, specialised as the JIT would do it, and compiled with Triton's own ptxas.
"""

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
from triton.compiler import ASTSource, compile as compile_kernel
from triton.runtime.jit import JITFunction

from vfm_kernels.triton import launch
from vfm_kernels.triton.attention import forget_settings

TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.bool: "*i1",
    torch.uint8: "*u8",
}
OPTIONS = ("num_warps", "num_stages", "maxnreg")


def specialised(value: Any) -> tuple[str, Any]:
    """Return an argument's type and its specialisation: a constant, or divisibility by 16."""
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype], 16
    if value is None or (type(value) is int and value == 1):
        return "constexpr", value
    if isinstance(value, bool):
        return "i1", None
    if isinstance(value, float):
        return "fp32", None
    return ("i32" if abs(value) < 2**31 else "i64"), 16 if value % 16 == 0 else None


def compiled(function: JITFunction, arguments: dict[str, Any], capability: int) -> dict[str, Any]:
    """Return registers, spills, shared memory and instructions of an intercepted launch."""
    options = {name: arguments.pop(name) for name in OPTIONS if name in arguments}
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(function.params):
        value = arguments[parameter.name]
        kind, known = ("constexpr", value) if parameter.is_constexpr else specialised(value)
        signature[parameter.name] = kind
        if kind == "constexpr":
            constants[parameter.name] = known
        elif known:
            attributes[(index,)] = [["tt.divisibility", known]]
    source = ASTSource(function, signature, constexprs=constants, attrs=attributes)
    kernel = compile_kernel(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = kernel.asm["ptx"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "k.ptx").write_text(ptx)
        arch = f"--gpu-name={sm_arch_from_capability(capability)}"
        command = [get_ptxas(capability).path, "-v", arch, f"{folder}/k.ptx", "-o", f"{folder}/k.o"]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {
        "registers": int(re.search(r"Used (\d+) registers", log)[1]),
        "spills": int(re.search(r"(\d+) bytes spill stores", log)[1]),
        "shared_bytes": kernel.metadata.shared,
        "warps": kernel.metadata.num_warps,
        "setmaxnreg": ptx.count("setmaxnreg"),
        "wgmma": ptx.count("wgmma.mma_async"),
        "tcgen05": ptx.count("tcgen05.mma"),
        "mma_sync": ptx.count("mma.sync"),
        "cp_async": len(re.findall(r"cp\.async\.c[ag]", ptx)) + ptx.count("cp.async.bulk.tensor"),
        "wide_accesses": len(re.findall(r"(?:ld|st)\.global\S*\.v4\.b32", ptx)),
    }


def main(file: str, *capabilities: str) -> None:
    spec = importlib.util.spec_from_file_location("cases", file)
    cases = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cases)
    launches: list[tuple[JITFunction, dict[str, Any]]] = []

    def intercept(self: JITFunction, *arguments: Any, grid: Any, warmup: bool, **constants: Any) -> None:
        launches.append((self, dict(zip(self.arg_names, arguments, strict=False)) | constants))

    JITFunction.run = intercept
    for capability in map(int, capabilities):
        table = launch.TABLES[max(first for first in launch.TABLES if first <= divmod(capability, 10))]
        launch.architecture = lambda device, name=table: name  # type: ignore[assignment]  # no device of it is needed
        forget_settings()
        for name, (op, width, run) in cases.CASES.items():
            launches.clear()
            run()
            for function, arguments in launches:
                row = launch.table_row(op, width, table)
                facts = compiled(function, arguments, capability)
                about = {"case": name, "kernel": function.__name__, "architecture": f"sm_{capability}", "row": row}
                print(json.dumps(about | facts), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
