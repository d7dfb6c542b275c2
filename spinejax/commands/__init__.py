"""The commands of the command line, one module each: HELP, define_flags(values), run(values).

A module may name in POSITIONAL the flag that gets words without a flag's name. Modules import slow
libraries inside `run`, so that `spinejax --help` is fast.
"""
