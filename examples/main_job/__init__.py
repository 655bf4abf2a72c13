"""Modules shared by the programs of the main job; begin reading at ``drf_mvsa.py``."""
