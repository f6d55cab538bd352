"""The base model: loading it, quantisation, adapters, and what it cannot do."""
