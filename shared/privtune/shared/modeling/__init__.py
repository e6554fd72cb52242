"""Models: loading, partition into Bottom | Top | Head, packages, LoRA, optimiser. The only room of `shared` with torch.

Importing the package imports none of its modules. Only `lora` imports peft, which a device need not have.
"""
