"""The commands of the command line, a room each: `add` declares its options, `run` does what they say.

Results go to stdout, advice to stderr. What a command needs is imported when it runs, so that `minivl --help` and mistakes in
the options answer at once.
"""
