"""Networks for phones: LiteRT on Android and elsewhere, Core ML on what Apple makes."""
