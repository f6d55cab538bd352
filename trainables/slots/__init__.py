"""Many LoRA trials on one frozen base, trained in the same forward and backward passes.

    host        a process that holds a base, which trials join and leave
    engine      the loop of passes over its busy slots
    slot        one trial's state: what TRL's trainer is to a trial that trains alone
    adapters    the batched linear layers; `batch`, `loss` and `optimizer` belong to the same step
    last_layer  the part of the base that is computed only where the loss reads it
    probe       how many slots train fastest, by `speed`
    eligibility which trials get no slot, and `batchable` which models have none

A trial in a slot measures the same as alone, within 1e-4 in fp32, whatever its neighbours do.
"""
