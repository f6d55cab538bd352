"""What training changed inside a model: spectra of the update, attention, representations.

A sweep runs it on its workers, where the GPUs and the base model are; `analysis.inspect_models`
runs it elsewhere and reads the records.
"""
