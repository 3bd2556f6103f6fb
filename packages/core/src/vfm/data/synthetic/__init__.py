"""Images of coloured shapes with captions, classes and pairs, so that recipes need no download.

All functions are pure: a sample depends only on the world's configuration, a seed and the sample's number.
"""
