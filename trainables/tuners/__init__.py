"""Adapters that PEFT does not have, as tuners of PEFT: importing this registers them with it.

After `import trainables.tuners` plain PEFT loads what they saved: `PeftModel.from_pretrained`.
"""

from trainables.tuners import bottleneck_tuner, difflora_tuner

__all__ = ["bottleneck_tuner", "difflora_tuner"]
