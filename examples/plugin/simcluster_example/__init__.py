"""An example of every kind of plug-in of simcluster; ``docs/extending.md`` explains each file."""
