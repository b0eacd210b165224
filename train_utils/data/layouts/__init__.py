"""How data sets are laid out on disk: folders of images and masks, scenes, lists, annotations."""
