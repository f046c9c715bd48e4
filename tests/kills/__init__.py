"""Commands that are killed at random moments: ``python -m tests.kills --kills 300``.

Each kill begins with a folder in which nothing is, or with the artefact of an earlier run. The command runs in a forked
process and gets SIGKILL after a random time, or before a random one of its operations on files. Then what is there must
be the old artefact or the new one, whole; the same command, run again, must succeed, give what it gives without a kill,
and leave nothing else: no hidden name, no work file.

A kind of command is a file of ``tests/kills/kinds`` and a line in its table.
"""
