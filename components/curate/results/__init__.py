"""What a curation leaves: index, audit, reasons, contact sheet and report.

Only the passes, the stage and its parameters come in. It promises one row an image, and one reason of a closed set for
each that was dropped.
"""
