"""kldcloud: what quantisation did to a language model, measured over a whole corpus."""

__version__ = "0.1.0"
