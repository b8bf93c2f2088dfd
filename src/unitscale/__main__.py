"""`python -m unitscale` is the command `unitscale`."""

from unitscale.cli import main

if __name__ == "__main__":
    main()
