"""The library under the command line. Everything the commands do can be done from Python.

A module imports only what stands left of it:
errors < recipe < tokenizer < corpus < prepared < batches < model < device < checkpoint < search
< translator < metrics < schedule < events < trainer
"""
