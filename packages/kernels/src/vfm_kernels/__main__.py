"""`python -m vfm_kernels explain --shape 8,257,16,88 --dtype bf16`: who would compute an attention, and why."""

import argparse

import torch

from vfm_kernels.explain import told
from vfm_kernels.problem import without_device

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line, and prints."""
    parser = argparse.ArgumentParser(prog="python -m vfm_kernels", description="The kernels of vfm.")
    command = parser.add_subparsers(required=True).add_parser(
        "explain", help="what each backend of attention says to a shape on this GPU, or without one, on Hopper"
    )
    command.add_argument("--shape", type=_shape, required=True, metavar="B,N,H,D", help="batch, tokens, heads, width")
    command.add_argument("--dtype", choices=DTYPES, default="bf16")
    command.add_argument("--causal", action="store_true", help="a token sees those before it")
    command.add_argument("--varlen", action="store_true", help="sequences lie one behind the other")
    chosen = parser.parse_args(arguments)
    here = torch.cuda.is_available()
    capability = torch.cuda.get_device_capability() if here else (9, 0)
    kind = {"causal": chosen.causal, "varlen": chosen.varlen}
    print(told(without_device(chosen.shape, DTYPES[chosen.dtype], capability, **kind), here=here))


def _shape(text: str) -> tuple[int, ...]:
    sizes = tuple(int(size) for size in text.split(","))
    if len(sizes) != 4 or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not four positive numbers: batch, tokens, heads, width")
    return sizes


if __name__ == "__main__":
    main()
