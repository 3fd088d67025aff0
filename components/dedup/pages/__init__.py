"""What a person looks dedup over by: the sweep of thresholds, duplicate groups, the review page.

Only the stage's commands come in. It promises to read what was decided and to change nothing of it.
"""
