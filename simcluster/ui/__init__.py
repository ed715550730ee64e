"""A local page for people who do not write TOML: ``simcluster ui`` (the extra ``ui``).

=======  ======================================================================
module   idea
=======  ======================================================================
command  the command
facts    the few facts of which a scenario can be made
form     all keys of a scenario file, and changes of its text
jobs     commands in processes of their own, and what came of them
page     what a browser shows
=======  ======================================================================
"""
