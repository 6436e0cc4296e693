"""Prompts without a list of answers: sweeps, verifiers, judges, precision and recall, programs.

Knows how texts are drawn, kept, labelled and compared. Knows no chapter's claims.
"""
