"""Encoders, attention and decoders.

Legend of the letters in every shape of this project:

====  =======================================================================
B     batch: photos
K     captions of a photo
L     regions of a photo, H x W of the encoder's grid (7 x 7 = 49)
D     feature width of a region (2048 for ResNet-50)
T     caption length in tokens
V     vocabulary size
E     word-embedding width
N     hidden width of the decoder
A     attention width
====  =======================================================================
"""
