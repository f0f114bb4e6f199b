"""The ``phistill`` command: parses, calls one verb, prints what a person wants to know next."""

import click

from phistill import __version__


@click.group()
@click.version_option(__version__, prog_name="phistill")
def main() -> None:
    """Cache every teacher once. Distill as many students as you like."""


if __name__ == "__main__":
    main()
