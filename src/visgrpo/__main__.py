"""`python -m visgrpo`, and `torchrun … -m visgrpo`."""

from visgrpo.cli import main

if __name__ == "__main__":
    main()
