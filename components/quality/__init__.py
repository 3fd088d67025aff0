"""The only module that imports Great Expectations: a suite for every table that travels between stages.

``validate(table, index_suite(...), out)`` checks a table, writes Data Docs, and stops the stage when a rule is broken.
``with checked_together():`` around several checks makes one context and one build of Data Docs for all of them.
"""

from components.quality.checks import QualityError, checked_together, validate
from components.quality.counts import validate_files
from components.quality.rules import Rule, Suite

__all__ = ["QualityError", "Rule", "Suite", "checked_together", "validate", "validate_files"]
