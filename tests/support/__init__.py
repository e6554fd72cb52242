"""What several tests share: clouds, owners, tiny models, a proxy, a hub."""
