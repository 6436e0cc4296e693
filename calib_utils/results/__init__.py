"""Measured and stored: one pass over a task, its rows on disk, and what makes them stale.

Knows tables, their records and their conventions. Knows no chapter and draws no figure.
"""
