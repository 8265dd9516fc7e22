"""File formats: TFRecord shards, their records and indexes."""
