"""One page about a run: what came in, what was dropped and why, how training went, and what the models score.

``components.report.build.write`` reads the stages' outputs and writes a single HTML file. It changes nothing else,
and no stage imports it.
"""
