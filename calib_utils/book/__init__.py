"""Notebooks run, pages built, stored results checked, and the command line's work.

Knows the checkout: notebooks, executed copies, the book's folder and its build.
"""
