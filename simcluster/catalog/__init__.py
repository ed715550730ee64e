"""The catalogue: GPUs, links, nodes, models, engines, length tables, each number with its source.

>>> gpu("H100").name
'H100 SXM'
>>> model("codellama_34B").num_kv_heads
8

Names are compared without regard to case, spaces, dashes and underscores. Files are read when
first asked for. The functions look among the packaged entries; a `Catalog` has a user's beside
them, as in ``Catalog().with_file("mine.toml").gpu("H100 NVL")``, and is a value: two in one process
know nothing of each other.

============  =======================================================================
module        idea
============  =======================================================================
specs         specifications in seconds, bytes and FLOP/s: what an entry is read into
layers        what a model is: runs of equal layers, each with a mixer and an MLP
expert_tiles  how engines cut the rows of experts into tiles
tables        keys, types, ranges and units of an entry, and its check
build         an entry in the units of data sheets -> a specification
model_entry   an entry of the table of models -> a model
parsed        packaged files, parsed once and kept as bytecode
store         entries read when first asked for, found by name
listing       entries as a list shows them
config_json   a model's config.json -> an entry
quantization  what a checkpoint's files say of its dtypes
kernel_file   a user's file of kernel times
derive        length tables from measured request sets
own_file      the user's own entries, written into a catalogue file
toml_writer   a document -> TOML
scores        errors against measured times as last accepted, by check and by kind
============  =======================================================================
"""

from simcluster.catalog.listing import Entry, search
from simcluster.catalog.store import KINDS, PACKAGED, Catalog, default_price

__all__ = [
    "KINDS",
    "PACKAGED",
    "Catalog",
    "Entry",
    "default_price",
    "engine",
    "gpu",
    "lengths",
    "link",
    "model",
    "names",
    "node",
    "quality",
    "search",
]

gpu, model, link, node = PACKAGED.gpu, PACKAGED.model, PACKAGED.link, PACKAGED.node
engine, lengths, quality = PACKAGED.engine, PACKAGED.lengths, PACKAGED.quality
names = PACKAGED.names
