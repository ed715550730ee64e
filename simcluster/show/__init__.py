"""Results for people: text, pictures, timelines. Each module is imported when it is needed.

=============  ==========================================================
module         idea
=============  ==========================================================
terminal       width of tables, silence, signs of life
commands       help of commands: groups, examples, common options
text           tables for a terminal, rows for programs
colours        colours of strategies
doctor         what of this installation works
examples       the scenarios and notebooks that come with the package
plot           latencies, attainment, goodput, load, KV
plot_links     links and transfers
plot_timeline  the turns of a macro instance
timeline       instances, links, requests and kernels for ui.perfetto.dev
=============  ==========================================================
"""
