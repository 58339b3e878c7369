"""The mean and the standard deviation of ImageNet's colours, as published: of red, green and blue in [0, 1]."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
