"""Networks from picture to maps: U²-Net and those it is compared with."""
