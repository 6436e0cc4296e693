"""Where logits come from: the registry, weight files, loading, scoring, generation, endpoints.

Knows how to turn a name into a model and a prompt into logits or continuations.
Knows nothing of stored results, of chapters or of what counts as a valid answer.
"""
