"""NVIDIA Model Optimizer's own QAD example, run with our data: its environment, files and results.

Nothing here imports it. It lives in an environment of its own on a machine with NVIDIA GPUs, and
what passes between the two are files and command lines; `pinned` says of which version.
"""
