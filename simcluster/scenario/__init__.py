"""What is asked: a scenario file, its tables with every key, and the resolved scenario.

================  =============================================================================
module            idea
================  =============================================================================
scenario          the resolved scenario
tables            every key, with type, unit, rule, default and meaning
rank_table        the table [rank]
cooptimize_table  the table [cooptimize]
arguments         arguments of the public functions: refused at once where they cannot be meant
engines           the engine: a profile of the catalogue and what [engine] changes of it
quantities        quantities with units as people write them
draft             a scenario file made of a few facts
plausible         values that are allowed and hardly meant, and what is usual
kernel_use        what of measured kernel times the strategies use
remarks           what is not used or looks like a slip: refused, or said in one line
check             pydantic's findings -> error lines, JSON Schema, Markdown
file              the reader: tables, defaults from the catalogue, overrides
================  =============================================================================
"""
