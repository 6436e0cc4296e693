"""One module a chapter: what it asks for, its tables, and its claims decided.

Knows the paper's claims and published numbers. Draws nothing and writes no page.
"""
