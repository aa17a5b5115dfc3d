"""Heatmaps. In: the models of an arm and the scans that the config names. Out: a picture per scan."""
