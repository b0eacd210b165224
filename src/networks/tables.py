"""The published stage tables: U²-Net's two (Qin et al. 2020, Table 1), IS-Net and its GT encoder
(Qin et al. 2022, "Highly accurate dichotomous image segmentation", section 4).
"""

from .config import StageConfig, StemConfig, U2NetConfig

FULL = U2NetConfig(
    name="u2net_full",
    # name, height, in_ch, mid_ch, out_ch
    encoder=(
        StageConfig("En1", 7, 3, 32, 64),
        StageConfig("En2", 6, 64, 32, 128),
        StageConfig("En3", 5, 128, 64, 256),
        StageConfig("En4", 4, 256, 128, 512),
        StageConfig("En5", 4, 512, 256, 512, dilated=True),
        StageConfig("En6", 4, 512, 256, 512, dilated=True, side=True),
    ),
    decoder=(
        StageConfig("De5", 4, 1024, 256, 512, dilated=True, side=True),
        StageConfig("De4", 4, 1024, 128, 256, side=True),
        StageConfig("De3", 5, 512, 64, 128, side=True),
        StageConfig("De2", 6, 256, 32, 64, side=True),
        StageConfig("De1", 7, 128, 16, 64, side=True),
    ),
)

LITE = U2NetConfig(
    name="u2net_lite",
    # name, height, in_ch, mid_ch, out_ch
    encoder=(
        StageConfig("En1", 7, 3, 16, 64),
        StageConfig("En2", 6, 64, 16, 64),
        StageConfig("En3", 5, 64, 16, 64),
        StageConfig("En4", 4, 64, 16, 64),
        StageConfig("En5", 4, 64, 16, 64, dilated=True),
        StageConfig("En6", 4, 64, 16, 64, dilated=True, side=True),
    ),
    decoder=(
        StageConfig("De5", 4, 128, 16, 64, dilated=True, side=True),
        StageConfig("De4", 4, 128, 16, 64, side=True),
        StageConfig("De3", 5, 128, 16, 64, side=True),
        StageConfig("De2", 6, 128, 16, 64, side=True),
        StageConfig("De1", 7, 128, 16, 64, side=True),
    ),
)

ISNET = FULL.replace(
    name="isnet",
    encoder=(StageConfig("En1", 7, 64, 32, 64), *FULL.encoder[1:]),
    conv_bias=True,  # as published
    stem=StemConfig(3, 64),
    fuse_sides=False,
    img_size=1024,
    mean=(0.5, 0.5, 0.5),
    std=(1.0, 1.0, 1.0),
)

ISNET_LITE = ISNET.replace(
    name="isnet_lite",
    encoder=(StageConfig("En1", 7, 64, 16, 64), *LITE.encoder[1:]),
    decoder=LITE.decoder,
    conv_bias=False,
)

GT_ENCODER = ISNET.replace(  # reads masks, whose values 0 and 1 stay unchanged
    name="isnet_gt_encoder",
    encoder=(
        StageConfig("En1", 7, 16, 16, 64, side=True),
        StageConfig("En2", 6, 64, 16, 64, side=True),
        StageConfig("En3", 5, 64, 32, 128, side=True),
        StageConfig("En4", 4, 128, 32, 256, side=True),
        StageConfig("En5", 4, 256, 64, 512, dilated=True, side=True),
        StageConfig("En6", 4, 512, 64, 512, dilated=True, side=True),
    ),
    decoder=(),
    stem=StemConfig(1, 16, norm=True),
    mean=(0.0, 0.0, 0.0),
)
