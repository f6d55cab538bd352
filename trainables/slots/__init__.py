"""Many LoRA trials on one frozen base, trained in the same forward and backward passes.

    host      a process with a base, which trials join and leave
    engine    the loop of passes over its busy slots
    slot      one trial's state: what TRL's trainer is to a trial alone
    adapters  the batched linear layers; `batch` and `optimizer` are of the same step
    probe     how many slots train fastest; `eligibility` and `base` say who cannot have one

A trial in a slot measures what it measures alone, within 1e-4 in fp32, whatever its neighbours do.
"""
