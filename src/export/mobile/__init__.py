"""Export for phones: LiteRT for Android and others, Core ML for Apple's devices."""
