"""The public functions of `import vfm`. They do the same as the commands, and return objects.

The commands print the results of these functions. `vfm` imports a function when it is first used, so torch is only
loaded if needed.
"""
