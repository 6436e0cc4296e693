"""One style and one module a chapter: tables in, axes out.

Knows colours, labels and the data of the interactive step. Computes no number of its own.
"""
