"""`python -m vfm`: the same as the command `vfm` (torchrun starts it so)."""

from vfm.cli import main

if __name__ == "__main__":
    main()
