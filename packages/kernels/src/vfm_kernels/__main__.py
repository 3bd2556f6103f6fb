"""Show the backend of an attention by `python -m vfm_kernels explain --shape 8,257,16,88 --dtype bf16`."""

import argparse

import torch

from vfm_kernels.multihead.explain import report
from vfm_kernels.multihead.problem import hypothetical_problem

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and print which backend would compute the attention."""
    parser = argparse.ArgumentParser(prog="python -m vfm_kernels", description="The kernels of vfm.")
    command = parser.add_subparsers(required=True).add_parser(
        "explain", help="show which backend an attention takes on this GPU (without a GPU: on Hopper), and why"
    )
    command.add_argument("--shape", type=_shape, required=True, metavar="B,N,H,D", help="batch, tokens, heads, width")
    command.add_argument("--dtype", choices=DTYPES, default="bf16")
    command.add_argument("--causal", action="store_true", help="a token sees only itself and earlier tokens")
    command.add_argument("--varlen", action="store_true", help="sequences of several lengths in one row")
    options = parser.parse_args(arguments)
    has_gpu = torch.cuda.is_available()
    # Hopper, the architecture that most of the settings were made for.
    capability = torch.cuda.get_device_capability() if has_gpu else (9, 0)
    kind = {"causal": options.causal, "varlen": options.varlen}
    problem = hypothetical_problem(options.shape, DTYPES[options.dtype], capability, **kind)
    print(report(problem, device_exists=has_gpu))


def _shape(text: str) -> tuple[int, ...]:
    sizes = tuple(int(size) for size in text.split(","))
    if len(sizes) != 4 or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"expected four positive numbers B,N,H,D, got {text}")
    return sizes


if __name__ == "__main__":
    main()
