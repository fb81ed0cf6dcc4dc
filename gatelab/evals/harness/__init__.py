"""lm-evaluation-harness (arXiv 2405.14782) for any model that predicts next tokens: Gatelab's decoders, and transformers'.

Notable: prompts, metrics and groups are the harness's, and so are scores, but for ties and numbers that are not finite, which
never count as correct. Of every item it is kept what was cut, tokenized otherwise, tied or not finite. `evaluate.evaluate` is
the whole of it; the harness is imported there, in `language_model`, `tasks`, `definitions` and `strict`, and nowhere else.
"""
