"""Models: loading, partition into Bottom | Top | Head, packages, LoRA and optimisers. The only torch room of `shared`.

Importing this package imports nothing; only `lora` imports peft, which a device does not have.
"""
