"""What runs inside of Triton before and after a network: the predictor's own functions, as models of Triton's Python
backend.

``deploykit package --triton`` writes a model repository whose ``model.py`` files name the classes of
:mod:`deploykit.runtime.triton.models`.
"""
