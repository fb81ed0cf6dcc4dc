"""How to ask a model: losses on held-out text, with the probes looking on."""
