"""The synthetic world: images of coloured shapes with captions, classes and pairs, so that a recipe needs no download.

Its functions are pure: each sample depends on the world's configuration, a seed and the sample's number only.
"""
