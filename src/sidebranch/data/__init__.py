"""Images and labels, in an order and with an augmentation that are functions of (seed, epoch, index) alone."""
