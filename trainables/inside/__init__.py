"""What training changed inside a model: spectra of the update, attention, representations.

Here and not in `analysis`, because a sweep starts it on its workers, where the GPUs and the base
model are; `analysis.inside` commands it elsewhere, and reads the records.
"""
