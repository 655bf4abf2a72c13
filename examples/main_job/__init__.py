"""What the programs of the main job share; ``drf_mvsa.py`` is where to begin."""
