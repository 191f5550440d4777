"""Selection: the best configuration or ensemble, its post-processing, and the model folder."""
