"""What the inputs of a model's matrices look like on calibration text, and what quantisation makes of that.

`text` is torch-free: plans check a calibration file before anything runs.
"""
