"""``python -m simcluster``: the command line."""

from simcluster.cli import main

if __name__ == "__main__":
    main(prog_name="simcluster")
