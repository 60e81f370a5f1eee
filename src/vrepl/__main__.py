"""`python -m vrepl`."""

from vrepl.cli import main

main(prog_name="vrepl")
