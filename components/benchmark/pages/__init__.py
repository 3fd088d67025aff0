"""Scores as a person reads them: tables, the comparison's page, paired tests, pictures, curves of training.

Only the stage and its commands come in. It promises to compute no score anew.
"""
