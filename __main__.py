"""``python -m phistill`` is the ``phistill`` command."""

from phistill.cli import main

if __name__ == "__main__":
    main()
