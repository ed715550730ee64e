"""A local page for people who do not write TOML: ``simcluster ui`` (the extra ``ui``)."""
