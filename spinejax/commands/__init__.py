"""The commands of the command line, one module each: HELP, define_flags(values), run(values).

POSITIONAL, if a module has it, names the flag that gets words without a flag. Modules import slow
libraries inside `run`, so that `spinejax --help` is fast.
"""
