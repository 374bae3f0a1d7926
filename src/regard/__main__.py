"""``python -m regard``: the command line, for programs that start modules, such as torchrun."""

from regard.cli import main

if __name__ == "__main__":
    main()
