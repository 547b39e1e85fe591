"""From latents to files, without a model: autoencoders, names of classes, pictures, and stores for large jobs.

Works on tensors and arrays, and imports nothing else of ditzoo.
"""
