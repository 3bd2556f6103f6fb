"""What `import vfm` offers to a script or a notebook: functions that do what the commands do, and return objects.

The commands print what these functions return. `vfm` imports a function when it is first used, so torch is loaded only
by what needs it.
"""
