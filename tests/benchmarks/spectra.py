"""How long the spectra of a LoRA trial's update take, from the files on.

    python tests/benchmarks/spectra.py

All 7 linears of 24 layers, 1024 wide (4096 in the MLP), rank 16, bfloat16: reads adapter and base
(0.8 GB) and gives stable rank, effective rank, rank at 90 %, singular values, main directions and
relative norm of each. The files are random and lie in a temporary folder; they are read once before
the clock starts, so that it measures the arithmetic and not the disk.

`--wide` also times one layer's decompositions of W0 and W, which intruder dimensions and
singular-vector cosines take, and which the spectra of the update do not need.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from trainables.config import LoraConfig, TrialConfig
from trainables.inspection.inspect_trial import describe
from trainables.inspection.saved_weights import SavedWeights
from trainables.inspection.spectra import dense_spectrum, update_spectrum, vector_change
from trainables.inspection.updates import updates

LAYERS, WIDTH, MLP, RANK = 24, 1024, 4096, 16
LINEARS = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (WIDTH, WIDTH),
    "self_attn.v_proj": (WIDTH, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (MLP, WIDTH),
    "mlp.up_proj": (MLP, WIDTH),
    "mlp.down_proj": (WIDTH, MLP),
}
LIMIT_SECONDS = 5


def write_model(folder: Path) -> None:
    base, adapter = {}, {}
    for layer in range(LAYERS):
        for linear, (outputs, inputs) in LINEARS.items():
            name = f"model.layers.{layer}.{linear}"
            base[f"{name}.weight"] = torch.randn(outputs, inputs).mul_(0.02).bfloat16()
            adapter[f"base_model.model.{name}.lora_A.weight"] = torch.randn(RANK, inputs)
            adapter[f"base_model.model.{name}.lora_B.weight"] = torch.randn(outputs, RANK)
    for part, tensors in (("base", base), ("adapter", adapter)):
        (folder / part).mkdir()
        save_file(tensors, folder / part / "model.safetensors")
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps({}))
    for file in folder.glob("*/*.safetensors"):
        file.read_bytes()


def hollow() -> LlamaForCausalLM:
    with torch.device("meta"):
        return LlamaForCausalLM(
            LlamaConfig(hidden_size=WIDTH, intermediate_size=MLP, num_hidden_layers=LAYERS)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wide", action="store_true")
    wide = parser.parse_args().wide
    torch.manual_seed(0)
    lora = LoraConfig(rank=RANK, alpha=32.0)
    trial = TrialConfig.model_construct(method="lora", lora=lora)
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder)
        base = SavedWeights(folder / "base")
        for threads in (1, 2):
            torch.set_num_threads(threads)
            started = time.perf_counter()
            changes = [
                describe(update, update_spectrum(update))
                for update in updates(
                    trial, folder / "adapter", base, hollow(), torch.device("cpu")
                )
            ]
            seconds = time.perf_counter() - started
            print(
                f"{len(changes)} matrices, rank {RANK}, {threads} thread(s): {seconds:.2f} s "
                f"(limit {LIMIT_SECONDS} s)"
            )
        if wide:
            started = time.perf_counter()
            for update in updates(trial, folder / "adapter", base, hollow(), torch.device("cpu")):
                if update.layer == 0:
                    before = dense_spectrum(update.base_OI).left_OK.float()
                    vector_change(before, dense_spectrum(update.tuned()).left_OK)
            seconds = time.perf_counter() - started
            print(f"decompositions of one layer's W0 and W: {seconds:.1f} s")


if __name__ == "__main__":
    main()
