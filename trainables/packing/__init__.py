"""Many LoRA trials on one frozen base, trained in the same forward and backward passes.

    planning    which trials can have a slot, and how many slots are fastest, as `probe` measures
    host        a process that holds a base, which trials, its clients, join and leave
    engine      the loop of passes over its busy slots
    slot        one trial's state: what TRL's trainer is to a trial that trains alone
    passes      which samples share a pass
    adapters    the batched linear layers, and `dropout` before them
    batch       the input of a pass; `loss` and `optimizer` belong to the same step
    last_layer  the part of the base that is computed only where the loss reads it
    batchable   which models have no slots

A trial in a slot measures the same as alone, within 1e-4 in fp32, whatever its neighbours do.
"""
