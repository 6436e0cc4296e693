"""What a number is: tasks, tries, prompts, ranking, rules, metrics and the split of a loss.

Knows arrays, texts and tokenizers. Knows no model's weights, no network and no result file.
"""
