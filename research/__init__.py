"""Measurements that are not part of the product: nothing under `privtune` imports this, and no wheel contains it."""
