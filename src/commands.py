"""The toolkit's commands. Imports nothing, so that setup.py can read it."""

COMMANDS = {  # what follows u2net: the script of the clone, and what it does
    "predict": ("predict", "masks of images and videos, cut-outs, new backgrounds"),
    "train": ("train", "train a network"),
    "validate": ("validation", "score weights, or maps, on data sets"),
    "export": ("export", "write ONNX, torch.export and AOTInductor files"),
    "convert": ("convert", "convert weights files"),
    "draw-masks": ("draw_masks", "write annotations (COCO, LabelMe, YOLO) as masks"),
    "serve": ("app", "a web page and an HTTP API"),
    "weights": ("fetch_weights", "list the weights that have a name, or fetch them"),
}
SCRIPTS = {script: command for command, (script, _) in COMMANDS.items()}  # u2net app: u2net serve
