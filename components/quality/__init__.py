"""The only module that imports Great Expectations: a suite for every table that travels between stages.

``validate(table, index_suite(...), out)`` checks a table, writes Data Docs, and stops the stage when a rule is broken.
"""

from components.quality.checks import QualityError, validate
from components.quality.counts import validate_files
from components.quality.rules import Rule, Suite

__all__ = ["QualityError", "Rule", "Suite", "validate", "validate_files"]
