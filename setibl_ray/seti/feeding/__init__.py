"""From shards to a network's batches: panels, augmentation, tf.data."""
