"""What can be said without a language model: theorems that run, laws with known answers, fits.

Knows tries, rules and results of known laws. Knows no real model and no stored row.
"""
