"""Floor 7: the command `jaxlm`. Nothing slow is imported before a command needs it.

main            usage, the call of a subcommand, exit codes
arguments       options, numbers and choices, checked from the source before JAX is imported
schema          the fields of configs, read from the source
field_overrides `--optim.lr 1e-3` and its like, typed
launch          the environment of a process before JAX starts
commands        a table of the subcommands, whose modules are imported when they are called
"""
