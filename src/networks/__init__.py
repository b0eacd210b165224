"""Networks from image to maps: U²-Net and those it is compared with."""
