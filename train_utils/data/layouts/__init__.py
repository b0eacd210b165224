"""How data sets lie on disk: folders of images and masks, scenes, lists, annotations."""
