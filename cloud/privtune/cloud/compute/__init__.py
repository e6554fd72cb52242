"""Where training and inference run: sessions of jobs on frozen base models, and the caches beside them."""
