"""The bundled toy world: the demo, its main job, its students, play, gallery, and the monitor's trials."""
